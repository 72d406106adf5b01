// Readers of an identity's fields: lists, what may be missing, and graphs that stand between two calls.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>

#include "bundle/json.h"
#include "bundle/tensorrt_identity.h"

namespace arforge {

inline constexpr std::size_t MAX_ENTRIES = 4096; // of a list
inline constexpr std::size_t MAX_REASON_LETTERS = 100000;

// All throw Error (the document's code) of what does not follow the format.
struct IdentityReader {
  Document document;

  [[noreturn]] void refuse(const std::string& place, const std::string& expected) const;

  [[nodiscard]] const Json& list(const Fields& fields, const char* name, std::size_t least, std::size_t most) const;

  static std::optional<std::string> optional(const Fields& fields, const char* name,
                                             std::size_t most = MAX_PATH_LETTERS, std::size_t least = 1);

  [[nodiscard]] std::optional<LoopIdentity> loop(const Fields& fields) const;
  [[nodiscard]] std::optional<TableIdentity> table(const Fields& fields) const;

private:
  void check_between(const Fields& fields, const std::string& kind, std::initializer_list<const char*> sizes,
                     const char* facts) const;
  static void check_counts(const Fields& fields, std::initializer_list<const char*> names);
};

} // namespace arforge
