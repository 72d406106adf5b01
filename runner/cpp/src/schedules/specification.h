// Schedule specifications such as `ntp`, `zipar:16,first-row=windowed`, and the schedules that they stand for.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "schedules/schedule.h"

namespace arforge {

inline constexpr const char* JACOBI = "jacobi"; // the option that says how many inputs a call runs ahead
inline constexpr const char* AUTO = "auto";     // which is left to the runner so

struct Specification {
  std::string kind;
  std::optional<std::int64_t> number;         // the part after the colon
  std::map<std::string, std::string> options; // only those that differ from the default
};

// Throws Error (schedule) that says what is unknown and what would be valid.
Specification parse_specification(const std::string& given);

std::string canonical_text(const Specification& specification);

// Whether the runner is to find how far it runs ahead, by what its engine was found to gain; its own table runs none.
bool leaves_window_open(const Specification& specification);

// The checked schedule for a grid; `kept`: cells that are known and stay; `row_end`: the index of the special token
// that ends each row of the model's grid, if there is one. Throws Error (schedule).
Schedule compile_schedule(const Specification& specification, std::int64_t rows, std::int64_t columns,
                          const std::vector<std::int32_t>& kept, std::optional<std::int64_t> row_end = {});

// Throw Error (schedule) unless: this kind decodes in `order`, for which a model was trained; it can start from known
// cells; the schedule feeds just the special tokens that the model was trained with (the last row needs no end, so a
// grid of one row feeds none).
void require_order(const Specification& specification, const std::string& given, const std::string& order);
void require_keeping(const Specification& specification, const std::string& given);
void require_specials(const Schedule& schedule, std::int64_t specials, std::optional<std::int64_t> row_end);

} // namespace arforge
