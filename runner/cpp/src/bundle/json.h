// JSON of a bundle, read by nlohmann's library as strictly as Python's runner reads it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "arforge.hpp"

namespace arforge {

using Json = nlohmann::json;

inline constexpr std::int64_t MAX_JSON = 1 << 24;  // bytes
inline constexpr std::int64_t MAX_COUNT = 1 << 30; // of the manifest's whole numbers
inline constexpr int MAX_DEPTH = 32;
inline constexpr std::size_t MAX_PATH_LETTERS = 400;

// Throws Error (`code`), "`name` is not valid JSON", also for NaN, what is not UTF-8, and a key that is given twice:
// what two parsers could take for different things is refused.
Json parse_json(const std::string& content, const std::string& name, Code code);

// A document as messages name it, and what the errors of a wrong one are.
struct Document {
  std::string_view name;
  Code code;
};

inline constexpr Document THE_MANIFEST = {"the manifest", Code::manifest};

// The fields of one JSON object that has just these, of which the `optional` ones may be missing. Every reader throws
// Error (the document's code), naming the place.
class Fields {
public:
  Fields(const Json& object, std::string place, std::initializer_list<const char*> names,
         const Document& document = THE_MANIFEST, std::initializer_list<const char*> optional = {});

  [[nodiscard]] bool has(const char* name) const { return object_.contains(name); }
  [[nodiscard]] const Json& at(const char* name) const { return object_[name]; }
  [[nodiscard]] std::string place(const char* name) const { return place_ + "." + name; }
  [[nodiscard]] std::int64_t whole(const char* name, std::int64_t least = 1, std::int64_t most = MAX_COUNT) const;
  [[nodiscard]] double number(const char* name, double least, double most) const;
  [[nodiscard]] std::string string(const char* name, std::size_t most = 200, std::size_t least = 1) const; // letters
  [[nodiscard]] std::string one_of(const char* name, std::initializer_list<const char*> words) const;
  [[nodiscard]] bool boolean(const char* name) const;
  [[nodiscard]] const Json& object(const char* name) const;
  [[nodiscard]] const Json& list(const char* name, std::size_t least) const;

private:
  [[noreturn]] void refuse(const char* name, const std::string& expected) const;

  const Json& object_;
  std::string place_;
  const Document& document_;
};

// A whole number in that range, not written as a fraction; throws Error (the document's code).
std::int64_t whole_number(const Json& value, const std::string& place, std::int64_t least, std::int64_t most,
                          const Document& document = THE_MANIFEST);

} // namespace arforge
