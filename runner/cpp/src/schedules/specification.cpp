#include "schedules/specification.h"

#include <algorithm>
#include <charconv>

#include "arforge.hpp"
#include "schedules/generators.h"
#include "text.h"

namespace arforge {
namespace {

struct Option {
  std::string name;
  std::vector<std::string> words; // empty: a whole number
  std::string usual;
  bool whole = false; // whether it takes a whole number in place of one of its words
};

struct Kind {
  std::string name;
  std::string number; // what the part after the colon is; empty where there is none
  std::string order;  // of cells that a model must have been trained for
  bool keeps;         // whether it can start from cells that are known
  bool row_ends;      // whether it decodes grids whose rows end in a token
  std::vector<Option> options;
  std::string mark = ":"; // between its name and its number
};

constexpr const char* CFG_INTERVAL = "cfg-interval";
constexpr const char* ADAPTIVE = "zipar:adaptive"; // ZipAR whose rows start as each image's tokens allow

const std::vector<Kind>& kinds() {
  static const Option interval = {CFG_INTERVAL, {}, "-1"};
  static const Option jacobi = {JACOBI, {}, "0"};
  static const Option jacobi_or_auto = {JACOBI, {AUTO}, "0", true};
  static const Option first_row = {"first-row", {"published", "windowed"}, "published"};
  static const Option seed = {"seed", {"published", "nearest"}, "published"};
  static const Option holes = {"holes", {"published", "masked"}, "published"};
  static const std::vector<Kind> known = {
      {"ntp", "", "raster", false, true, {interval, jacobi_or_auto}},
      {"zipar", "WINDOW", "raster", false, true, {first_row, seed, holes, interval, jacobi}},
      {ADAPTIVE, "WINDOW", "raster", false, true, {first_row, seed, holes, interval}, "="},
      {"par", "REGIONS", "regions", false, false, {}},
      {"arpg",
       "STEPS",
       "random",
       true,
       false,
       {{"ratio", {"arccos", "cosine"}, "arccos"},
        {"cfg", {"linear", "constant"}, "linear"},
        {"order", {}, "0"},
        {"groups", {"published", "causal"}, "published"}}},
  };
  return known;
}

template <class List>
auto find_named(const List& list, const std::string& name) {
  return std::find_if(list.begin(), list.end(), [&](const auto& item) { return item.name == name; });
}

template <class List, class Chosen>
std::string names_of(const List& list, Chosen chosen) {
  std::vector<std::string> names;
  for (const auto& item : list) {
    if (chosen(item)) {
      names.push_back(item.name);
    }
  }
  return listed(names);
}

const Kind& kind_of(const std::string& name, const std::string& given) {
  const auto found = find_named(kinds(), name);
  if (found == kinds().end()) {
    const std::string all = names_of(kinds(), [](const Kind&) { return true; });
    throw Error(Code::schedule, text("unknown schedule '", given, "': known: ", all));
  }
  return *found;
}

std::int64_t integer(const std::string& digits, const std::string& what) {
  std::int64_t value = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, failed] = std::from_chars(digits.data(), end, value);
  if (digits.empty() || stop != end || failed != std::errc() || digits.size() > 20) {
    throw Error(Code::schedule, text(what, " needs a whole number, not '", digits, "'"));
  }
  return value;
}

std::string stripped(const std::string& given) {
  const char* blanks = " \t\n\r\f\v";
  const std::size_t first = given.find_first_not_of(blanks);
  return first == std::string::npos ? "" : given.substr(first, given.find_last_not_of(blanks) - first + 1);
}

std::vector<std::string> split(const std::string& given, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(given + separator);
  for (std::string part; std::getline(in, part, separator);) {
    parts.push_back(part);
  }
  return parts;
}

// The first part of a specification; mark and number are empty where there are none.
struct Head {
  std::string name, mark, number;
};

Head head_of(const std::string& part) {
  const std::size_t equals = part.rfind('=');
  const std::size_t mark = equals == std::string::npos ? part.find(':') : equals;
  if (mark == std::string::npos || find_named(kinds(), part) != kinds().end()) {
    return {part, "", ""};
  }
  return {part.substr(0, mark), part.substr(mark, 1), part.substr(mark + 1)};
}

// `given`: the specification that has the option.
void enter_option(Specification& specification, std::map<std::string, std::string>& met, const std::string& option,
                  const std::string& given) {
  const Kind& kind = kind_of(specification.kind, specification.kind);
  const std::size_t equals = option.find('=');
  const auto known = find_named(kind.options, option.substr(0, equals));
  if (known == kind.options.end() || equals == std::string::npos) {
    const std::string all = names_of(kind.options, [](const Option&) { return true; });
    throw Error(Code::schedule, text("unknown option '", option, "' of schedule ", kind.name, ": known: ", all));
  }
  if (met.count(known->name) > 0) {
    throw Error(Code::schedule, text("schedule '", given, "' gives option ", known->name, " twice"));
  }
  std::string value = option.substr(equals + 1);
  const bool word = std::find(known->words.begin(), known->words.end(), value) != known->words.end();
  if (known->words.empty() || (known->whole && !word)) {
    value = std::to_string(integer(value, "option " + known->name));
  } else if (!word) {
    throw Error(Code::schedule,
                text("option ", known->name, " is one of ", listed(known->words), ", not '", value, "'"));
  }
  met[known->name] = value;
  if (value != known->usual) {
    specification.options[known->name] = value;
  }
}

std::string option_of(const Specification& specification, const char* key, const char* usual) {
  const auto found = specification.options.find(key);
  return found == specification.options.end() ? usual : found->second;
}

std::int64_t number_of(const Specification& specification, const char* key, const char* usual) {
  return integer(option_of(specification, key, usual), text("option ", key));
}

std::int64_t jacobi_of(const Specification& specification) {
  return leaves_window_open(specification) ? 0 : number_of(specification, JACOBI, "0");
}

// The table of these rules, which images leave as the kind says.
void zipar_table(Schedule& schedule, const Specification& specification, const RowRules& rules) {
  row_table(schedule, rules);
  if (specification.kind == ADAPTIVE) {
    schedule.rules = rules;
  }
}

// For models whose rows end in a token; throws for a kind, or an option, that has no meaning there.
void build_row_ends(Schedule& schedule, const Specification& specification, std::int64_t row_end) {
  if (!kind_of(specification.kind, schedule.specification).row_ends) {
    throw Error(Code::schedule,
                text("schedule '", schedule.specification, "' knows no rows that end in a token, as this model's do"));
  }
  for (const auto& [name, value] : specification.options) {
    if (name != CFG_INTERVAL && name != JACOBI) {
      throw Error(Code::schedule, text("schedule '", schedule.specification,
                                       "': this model's rows end in a token, which leaves nothing for ", name,
                                       " to decide: leave it out"));
    }
  }
  run_ahead(schedule, jacobi_of(specification));
  const std::int64_t window = specification.number.value_or(schedule.columns + 1);
  check_window_with_end(schedule, window);
  zipar_table(schedule, specification,
              {window - 1, false, false, false, number_of(specification, CFG_INTERVAL, "-1"), row_end});
}

void build(Schedule& schedule, const Specification& specification) {
  const auto option = [&](const char* key, const char* usual) { return option_of(specification, key, usual); };
  const std::int64_t number = specification.number.value_or(0);
  if (specification.kind == "ntp") {
    next_token(schedule, number_of(specification, CFG_INTERVAL, "-1"), jacobi_of(specification));
  } else if (specification.kind == "zipar" || specification.kind == ADAPTIVE) {
    run_ahead(schedule, jacobi_of(specification));
    zipar_table(schedule, specification,
                {number,
                 option("first-row", "") == "windowed",
                 option("seed", "") == "nearest",
                 option("holes", "") == "masked",
                 number_of(specification, CFG_INTERVAL, "-1"),
                 {}});
  } else if (specification.kind == "par") {
    par(schedule, number);
  } else {
    const std::int64_t order = number_of(specification, "order", "0");
    if (order < 0) {
      throw Error(Code::schedule, text("order seed ", order, " is out of range: use 0 to 2**63 - 1"));
    }
    arpg(schedule, {number, option("ratio", "") == "cosine", option("cfg", "") == "constant",
                    static_cast<std::uint64_t>(order), option("groups", "") == "causal"});
  }
}

} // namespace

Specification parse_specification(const std::string& given) {
  const std::string whole = stripped(given);
  if (const std::string alias = text(JACOBI, ":"); whole.rfind(alias, 0) == 0) {
    return parse_specification(text("ntp,", JACOBI, "=", whole.substr(alias.size())));
  }
  const std::vector<std::string> parts = split(whole, ',');
  const Head head = head_of(parts.front());
  Specification specification{head.name, {}, {}};
  const Kind& kind = kind_of(specification.kind, given);
  if (head.mark != (kind.number.empty() ? "" : kind.mark)) {
    const std::string form = kind.number.empty() ? kind.name : kind.name + kind.mark + kind.number;
    throw Error(Code::schedule,
                text("schedule '", given, "' is malformed: write it as ", form, ", options after commas"));
  }
  std::map<std::string, std::string> met;
  for (std::size_t index = 1; index < parts.size(); index++) {
    enter_option(specification, met, parts[index], given);
  }
  if (!head.mark.empty()) {
    specification.number = integer(head.number, "schedule " + kind.name);
  }
  return specification;
}

std::string canonical_text(const Specification& specification) {
  std::string result = specification.kind;
  if (specification.number) {
    result += text(kind_of(specification.kind, specification.kind).mark, *specification.number);
  }
  for (const auto& [name, value] : specification.options) {
    result += text(",", name, "=", value);
  }
  return result;
}

bool leaves_window_open(const Specification& specification) { return option_of(specification, JACOBI, "0") == AUTO; }

Schedule compile_schedule(const Specification& specification, std::int64_t rows, std::int64_t columns,
                          const std::vector<std::int32_t>& kept, std::optional<std::int64_t> row_end) {
  if (rows < 1 || columns < 1 || rows > MAX_CELLS || rows * columns > MAX_CELLS) {
    throw Error(Code::schedule, text("grid ", rows, "x", columns, " is out of range: use 1 to ", MAX_CELLS, " cells"));
  }
  const std::string name = canonical_text(specification);
  Schedule schedule{name, rows, columns, {}, 1, 0, false, kept};
  if (!kept.empty()) {
    require_keeping(specification, name);
  }
  if (row_end) {
    build_row_ends(schedule, specification, *row_end);
  } else {
    build(schedule, specification);
  }
  return checked(std::move(schedule));
}

void require_order(const Specification& specification, const std::string& given, const std::string& order) {
  const std::string& own = kind_of(specification.kind, given).order;
  if (own != order) {
    const std::string fitting = names_of(kinds(), [&](const Kind& kind) { return kind.order == order; });
    throw Error(Code::schedule, text("schedule '", given, "' decodes in ", own, " order, this model in ", order,
                                     " order: use one of ", fitting));
  }
}

void require_keeping(const Specification& specification, const std::string& given) {
  if (!kind_of(specification.kind, given).keeps) {
    throw Error(Code::schedule, text("schedule '", given,
                                     "' decodes in an order of its own and cannot keep cells or go beyond the "
                                     "grid: that takes a model and a schedule of random order (",
                                     names_of(kinds(), [](const Kind& kind) { return kind.keeps; }), ")"));
  }
}

void require_specials(const Schedule& schedule, std::int64_t specials, std::optional<std::int64_t> row_end) {
  specials = row_end && schedule.rows == 1 ? 0 : specials;
  if (const std::int64_t needed = specials_of(schedule); needed != specials) {
    throw Error(Code::schedule, text("schedule ", schedule.specification, " needs ", needed,
                                     " special tokens, the model was trained with ", specials,
                                     ": use the schedule that it was trained for"));
  }
}

} // namespace arforge
