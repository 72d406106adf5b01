#include "schedules/file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "bundle/json.h"
#include "text.h"

namespace arforge {
namespace {

constexpr const char* MAGIC = "ARFSCHED";
constexpr std::size_t PREFIX = 16; // bytes: magic, version, length of the header
constexpr std::uint32_t FORMAT_VERSION = 1;
constexpr std::size_t MAX_HEADER = 1 << 16;
constexpr std::int64_t MAX_ROWS = 1 << 24;

struct Header {
  std::string specification;
  std::int64_t rows, columns;
  std::int64_t conditions, zero_slots, queries;
  std::int64_t steps, inputs, targets, retired, kept; // entries in each kind of column
  std::int64_t jacobi;
  std::optional<RowRules> rules;
};

// One column of a file, 4 bytes an entry.
struct Column {
  const unsigned char* bytes;

  [[nodiscard]] std::int32_t operator[](std::int64_t row) const { return static_cast<std::int32_t>(bits(row)); }
  [[nodiscard]] float real(std::int64_t row) const {
    const std::uint32_t found = bits(row);
    float value = 0;
    std::memcpy(&value, &found, sizeof value);
    return value;
  }
  [[nodiscard]] std::uint32_t bits(std::int64_t row) const {
    const unsigned char* entry = bytes + 4 * row;
    return std::uint32_t{entry[0]} | std::uint32_t{entry[1]} << 8 | std::uint32_t{entry[2]} << 16 |
           std::uint32_t{entry[3]} << 24;
  }
};

struct Columns {
  Column input_end, target_end, retire_end, commit, guidance; // (steps)
  Column source, value, position, rank, holes;                // (inputs)
  Column target_row, target_cell;                             // (targets)
  Column retired_slot;                                        // (retired)
  Column kept_cell;                                           // (kept)
};

[[noreturn]] void refuse(const std::string& name, const std::string& problem) {
  throw Error(Code::schedule, name + problem);
}

// One of two words of a schedule's rules; whether it is the second.
bool second_word(const Json& rules, const char* rule, const char* usual, const char* other, const std::string& name) {
  const Json& given = rules[rule];
  if (given != usual && given != other) {
    const std::string found = given.is_string() ? text("'", given.get<std::string>(), "'") : given.dump();
    refuse(name, text(": rows have ", rule, " ", found, ": use one of ", usual, ", ", other));
  }
  return given == other;
}

RowRules rules_of(const Json& given, const std::string& name) {
  constexpr std::array<const char*, 6> RULES = {"cfg_interval", "first_row", "holes", "row_end", "seed", "window"};
  const auto has = [&](const char* rule) { return given.contains(rule); };
  if (!given.is_object() || given.size() != RULES.size() || !std::all_of(RULES.begin(), RULES.end(), has)) {
    refuse(name, text(": rows must have ", listed(RULES)));
  }
  const auto number = [&](const char* rule, std::int64_t least) {
    const Json& value = given[rule];
    if (!value.is_number_integer() || value < least || value > MAX_ROWS) {
      refuse(name, ": rows have a number that is out of range");
    }
    return value.get<std::int64_t>();
  };
  RowRules rules{number("window", -1), false, false, false, number("cfg_interval", -1), {}};
  if (!given["row_end"].is_null()) {
    rules.row_end = number("row_end", 0);
  }
  rules.windowed = second_word(given, "first_row", "published", "windowed", name);
  rules.nearest = second_word(given, "seed", "published", "nearest", name);
  rules.masked = second_word(given, "holes", "published", "masked", name);
  return rules;
}

Header header_of(const std::string& content, const std::string& name) {
  const Json header = parse_json(content, name + ": header", Code::schedule);
  if (!header.is_object() || !header.value("specification", Json()).is_string()) {
    refuse(name, ": header lacks a specification");
  }
  const Json grid = header.value("grid", Json());
  if (!grid.is_array() || grid.size() != 2) {
    refuse(name, ": grid must be [rows, columns]");
  }
  const auto fits = [](const Json& value) { return value.is_number_integer() && value >= 0 && value <= MAX_ROWS; };
  const auto size = [&](const Json& value) {
    if (!fits(value)) {
      refuse(name, ": header has a size that is missing or out of range");
    }
    return value.get<std::int64_t>();
  };
  const auto field = [&](const char* key) { return size(header.value(key, Json())); };
  Header found{header["specification"].get<std::string>(),
               size(grid[0]),
               size(grid[1]),
               field("conditions"),
               field("zero_slots"),
               field("queries"),
               field("steps"),
               field("inputs"),
               field("targets"),
               field("retired"),
               field("kept"),
               0,
               {}};
  if (const auto given = header.find("jacobi"); given != header.end()) {
    if (!fits(*given)) {
      refuse(name, text(": jacobi must be a whole number of inputs, not ", given->dump()));
    }
    found.jacobi = given->get<std::int64_t>();
  }
  if (found.queries > 1) {
    refuse(name, text(": queries must be 0 or 1, not ", found.queries));
  }
  if (const auto given = header.find("rows"); given != header.end()) {
    found.rules = rules_of(*given, name);
  }
  return found;
}

Columns columns_of(const Header& header, const unsigned char* bytes) {
  const auto next = [&](std::int64_t entries) {
    const Column column{bytes};
    bytes += 4 * entries;
    return column;
  };
  Columns c{};
  for (Column* column : {&c.input_end, &c.target_end, &c.retire_end, &c.commit, &c.guidance}) {
    *column = next(header.steps);
  }
  for (Column* column : {&c.source, &c.value, &c.position, &c.rank, &c.holes}) {
    *column = next(header.inputs);
  }
  c.target_row = next(header.targets);
  c.target_cell = next(header.targets);
  c.retired_slot = next(header.retired);
  c.kept_cell = next(header.kept);
  return c;
}

// Throws unless the ends rise from 0 to the number of rows.
void check_ends(const Column& ends, std::int64_t steps, std::int64_t rows, const std::string& problem) {
  std::int64_t last = 0;
  bool rising = true;
  for (std::int64_t step = 0; step < steps; step++) {
    rising = rising && ends[step] >= last;
    last = ends[step];
  }
  if (!rising || last != rows) {
    throw Error(Code::schedule, problem);
  }
}

Schedule assembled(Header header, const Columns& c, const std::string& name) {
  const std::string uncovered = " does not cover its rows in order";
  check_ends(c.input_end, header.steps, header.inputs, name + ": column input_end" + uncovered);
  check_ends(c.target_end, header.steps, header.targets, name + ": column target_end" + uncovered);
  check_ends(c.retire_end, header.steps, header.retired, name + ": column retire_end" + uncovered);
  Schedule schedule{std::move(header.specification),
                    header.rows,
                    header.columns,
                    {},
                    header.conditions,
                    header.zero_slots,
                    header.queries == 1,
                    {},
                    header.jacobi,
                    header.rules};
  schedule.steps.reserve(static_cast<std::size_t>(header.steps));
  std::int64_t input = 0;
  std::int64_t target = 0;
  std::int64_t retired = 0;
  for (std::int64_t index = 0; index < header.steps; index++) {
    Step step{{}, {}, c.commit[index], {}, c.guidance.real(index)};
    for (; input < c.input_end[index]; input++) {
      const std::int32_t source = c.source[input];
      if (source < 0 || source > static_cast<std::int32_t>(Source::special)) {
        refuse(name, ": unknown kind of source");
      }
      step.inputs.push_back(
          {static_cast<Source>(source), c.value[input], c.position[input], c.rank[input], c.holes[input]});
    }
    for (; target < c.target_end[index]; target++) {
      step.targets.push_back({c.target_row[target], c.target_cell[target]});
    }
    for (; retired < c.retire_end[index]; retired++) {
      step.retire.push_back(c.retired_slot[retired]);
    }
    schedule.steps.push_back(std::move(step));
  }
  for (std::int64_t index = 0; index < header.kept; index++) {
    schedule.kept.push_back(c.kept_cell[index]);
  }
  return schedule;
}

} // namespace

Schedule load_schedule(const std::string& content, const std::string& name) {
  if (content.size() < PREFIX) {
    refuse(name, text(" is not a schedule: ", content.size(), " bytes"));
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(content.data());
  if (std::memcmp(bytes, MAGIC, 8) != 0) {
    refuse(name, text(" is not a schedule: it does not start with ", MAGIC));
  }
  const Column prefix{bytes + 8};
  if (prefix.bits(0) != FORMAT_VERSION) {
    refuse(name,
           text(" has schedule format ", prefix.bits(0), "; this arforge reads ", FORMAT_VERSION, ": update arforge"));
  }
  const std::size_t length = prefix.bits(1);
  if (length > std::min(MAX_HEADER, content.size() - PREFIX)) {
    refuse(name, text(": header of ", length, " bytes does not fit the file"));
  }
  Header header = header_of(content.substr(PREFIX, length), name);
  const std::size_t start = PREFIX + length;
  const std::int64_t entries = 5 * header.steps + 5 * header.inputs + 2 * header.targets + header.retired + header.kept;
  const std::int64_t expected = static_cast<std::int64_t>(start) + 4 * entries;
  if (expected != static_cast<std::int64_t>(content.size())) {
    refuse(name, text(" has ", content.size(), " bytes, its header asks for ", expected));
  }
  const Columns columns = columns_of(header, bytes + start);
  return checked(assembled(std::move(header), columns, name));
}

} // namespace arforge
