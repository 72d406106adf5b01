#include "schedules/schedule.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "arforge.hpp"
#include "schedules/generators.h"
#include "text.h"

namespace arforge {
namespace {

// What is decided and what the cache holds, step after step.
struct Checker {
  const Schedule& schedule;
  std::vector<bool> decided; // (cells)
  std::vector<bool> live;    // (slots committed so far), not counting zero slots
  std::vector<bool> row_met; // (outputs of the step)

  [[nodiscard]] std::string inputs(const Step& step) const;
  std::string cache(const Step& step);
  std::string targets(const Step& step);
};

std::string Checker::inputs(const Step& step) const {
  const std::int64_t last_position = schedule.cells() + schedule.rows; // a token may end each row
  for (const Input& given : step.inputs) {
    if (given.value < 0) {
      return text("token ", given.value, " is negative");
    }
    const auto value = static_cast<std::size_t>(given.value);
    if (given.source == Source::cell && (value >= decided.size() || !decided[value])) {
      return text("reads cell ", given.value, ", which no earlier step decides");
    }
    if (given.source == Source::condition && given.value >= schedule.conditions) {
      return text("reads condition token ", given.value, " of ", schedule.conditions);
    }
    if (given.position < 0 || given.position > last_position) {
      return text("position ", given.position, " is outside 0..", last_position);
    }
    if (given.rank < 0 || given.rank > MAX_CELLS) {
      return text("rank ", given.rank, " is outside 0..", MAX_CELLS);
    }
    if (given.holes < 0 || given.holes > schedule.zero_slots) {
      return text("sees ", given.holes, " zero slots of ", schedule.zero_slots);
    }
  }
  return step.inputs.empty() ? "has no inputs" : "";
}

std::string Checker::cache(const Step& step) {
  if (step.commit < 0 || step.commit > static_cast<std::int64_t>(step.inputs.size())) {
    return text("keeps ", step.commit, " of ", step.inputs.size(), " slots");
  }
  if (step.commit == 0 && step.targets.empty()) {
    return "decides nothing and keeps nothing";
  }
  const std::int64_t end = schedule.zero_slots + static_cast<std::int64_t>(live.size() + step.inputs.size());
  if (const std::int64_t most = schedule.zero_slots + 2 * (schedule.cells() + schedule.conditions); end > most) {
    return text("uses ", end, " cache slots, more than the ", most, " that it may use");
  }
  for (const std::int32_t slot : step.retire) {
    const std::int64_t place = slot - schedule.zero_slots;
    if (place < 0 || place >= static_cast<std::int64_t>(live.size()) || !live[static_cast<std::size_t>(place)]) {
      return text("retires slot ", slot, ", which is not live");
    }
    live[static_cast<std::size_t>(place)] = false;
  }
  live.insert(live.end(), static_cast<std::size_t>(step.commit), true);
  return "";
}

std::string Checker::targets(const Step& step) {
  if (!(step.guidance >= 0 && step.guidance <= 1)) {
    return text("guidance weight ", step.guidance, " is outside 0..1");
  }
  const std::size_t outputs = schedule.queries ? step.targets.size() : step.inputs.size();
  row_met.assign(outputs, false);
  for (const auto& [row, cell] : step.targets) {
    if (row < 0 || static_cast<std::size_t>(row) >= outputs) {
      return text("samples output ", row, " of ", outputs);
    }
    if (row_met[static_cast<std::size_t>(row)]) {
      return "samples one output row twice";
    }
    if (cell < 0 || cell >= schedule.cells()) {
      return text("decides cell ", cell, " outside the grid");
    }
    if (decided[static_cast<std::size_t>(cell)]) {
      return text("decides cell ", cell, " again");
    }
    row_met[static_cast<std::size_t>(row)] = decided[static_cast<std::size_t>(cell)] = true;
  }
  return "";
}

// Whether every input stays, and sees only what stands before it: such a table can be run ahead on drafts.
bool is_line(const Schedule& schedule) {
  const auto stays = [](const Step& step) {
    const auto falls = [](const Input& before, const Input& after) { return before.rank >= after.rank; };
    return step.commit == static_cast<std::int64_t>(step.inputs.size()) &&
           std::adjacent_find(step.inputs.begin(), step.inputs.end(), falls) == step.inputs.end();
  };
  return schedule.jacobi >= 2 && schedule.jacobi <= schedule.cells() && !schedule.queries && schedule.kept.empty() &&
         std::all_of(schedule.steps.begin(), schedule.steps.end(), stays);
}

// Whether the table is the one in which every row starts as soon as the rules let it.
bool is_bound(const Schedule& schedule, const RowRules& rules) {
  Schedule table{schedule.specification, schedule.rows, schedule.columns, {}, 1, 0, false, {}};
  row_table(table, rules);
  return schedule.steps == table.steps && schedule.conditions == table.conditions &&
         schedule.zero_slots == table.zero_slots && !schedule.queries && schedule.kept.empty() && schedule.jacobi == 0;
}

} // namespace

std::int64_t slots_of(const Schedule& schedule) {
  std::int64_t slot = schedule.zero_slots;
  std::int64_t slots = 0;
  for (const Step& step : schedule.steps) {
    slots = std::max(slots, slot + static_cast<std::int64_t>(step.inputs.size()));
    slot += step.commit;
  }
  return slots;
}

std::int64_t specials_of(const Schedule& schedule) {
  std::int64_t specials = 0;
  for (const Step& step : schedule.steps) {
    for (const Input& given : step.inputs) {
      if (given.source == Source::special) {
        specials = std::max<std::int64_t>(specials, std::int64_t{given.value} + 1);
      }
    }
  }
  return specials;
}

std::int64_t last_position_of(const Schedule& schedule) {
  std::int64_t last = 0;
  for (const Step& step : schedule.steps) {
    for (const Input& given : step.inputs) {
      last = std::max<std::int64_t>(last, given.position);
    }
  }
  return last;
}

Schedule checked(Schedule schedule) {
  const auto refuse = [&](const std::string& problem) {
    throw Error(Code::schedule, text("schedule ", schedule.specification, problem));
  };
  if (schedule.rows <= 0 || schedule.columns <= 0 || schedule.rows > MAX_CELLS || schedule.cells() > MAX_CELLS) {
    refuse(text(": grid ", schedule.rows, "x", schedule.columns, " is out of range"));
  }
  if (schedule.steps.empty() || schedule.conditions < 0 || schedule.conditions > MAX_CELLS || schedule.zero_slots < 0) {
    refuse(": no steps, negative sizes, or too many conditions");
  }
  if (schedule.zero_slots > 2 * schedule.cells()) {
    refuse(text(": ", schedule.zero_slots, " zero slots are out of range"));
  }
  Checker checker{schedule, std::vector<bool>(static_cast<std::size_t>(schedule.cells())), {}, {}};
  for (const std::int32_t cell : schedule.kept) {
    if (cell < 0 || cell >= schedule.cells() || checker.decided[static_cast<std::size_t>(cell)]) {
      refuse(": keeps a cell twice, or one outside the grid");
    }
    checker.decided[static_cast<std::size_t>(cell)] = true;
  }
  for (std::size_t index = 0; index < schedule.steps.size(); index++) {
    const Step& step = schedule.steps[index];
    std::string problem = checker.inputs(step);
    problem = problem.empty() ? checker.cache(step) : problem;
    problem = problem.empty() ? checker.targets(step) : problem;
    if (!problem.empty()) {
      refuse(text(", step ", index, ": ", problem));
    }
  }
  if (schedule.jacobi != 0 && !is_line(schedule)) {
    refuse(": its inputs are no line to run ahead of on drafts");
  }
  if (schedule.rules && !is_bound(schedule, *schedule.rules)) {
    refuse(": its steps are not those that its rows are bounded by");
  }
  if (const auto missing = std::count(checker.decided.begin(), checker.decided.end(), false); missing > 0) {
    refuse(text(": ", missing, " cells are never decided"));
  }
  return schedule;
}

} // namespace arforge
