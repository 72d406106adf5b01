#include "plan.h"

#include <algorithm>
#include <limits>

#include "arforge.hpp"
#include "text.h"

namespace arforge {
namespace {

constexpr std::int32_t NEVER = std::numeric_limits<std::int32_t>::max(); // of slots that are unwritten or retired

std::int64_t engine_width(std::int64_t width, const std::vector<std::int64_t>& widths) {
  if (widths.empty()) {
    return width;
  }
  std::int64_t best = 0;
  for (const std::int64_t known : widths) {
    best = known >= width && (best == 0 || known < best) ? known : best;
  }
  if (best == 0) {
    throw Error(Code::engine,
                text("the schedule decodes ", width, " tokens in a step, the engine was built for widths ",
                     listed(widths), ": rebuild it with `arforge build --width ", width, "`"));
  }
  return best;
}

// The list with its last entry repeated up to `width`.
template <class T>
void pad(std::vector<T>& list, std::int64_t width) {
  list.resize(static_cast<std::size_t>(width), list.back());
}

PlannedStep planned(const Step& step, const Plan& plan, bool queries, const std::vector<std::int64_t>& widths) {
  PlannedStep result{};
  const std::int64_t first[] = {0, plan.cells, plan.cells + plan.conditions}; // columns of each source
  for (const Input& given : step.inputs) {
    result.columns.push_back(first[static_cast<std::size_t>(given.source)] + given.value);
    result.positions.push_back(given.position);
    result.ranks.push_back(given.rank);
    result.holes.push_back(given.holes);
  }
  result.inputs = static_cast<std::int64_t>(step.inputs.size());
  result.shape.width = engine_width(result.inputs, widths);
  pad(result.columns, result.shape.width);
  pad(result.positions, result.shape.width);
  pad(result.ranks, result.shape.width);
  pad(result.holes, result.shape.width);
  for (const auto& [row, cell] : step.targets) {
    result.target_rows.push_back(row);
    result.target_cells.push_back(cell);
    if (queries) {
      result.query_positions.push_back(1 + cell);
    }
  }
  if (queries) { // a step that decides nothing asks for one cell all the same, and drops it
    result.query_positions.resize(std::max<std::size_t>(result.query_positions.size(), 1));
    result.shape.queries = engine_width(static_cast<std::int64_t>(result.query_positions.size()), widths);
    pad(result.query_positions, result.shape.queries);
  }
  result.retire = step.retire;
  result.commit = step.commit;
  result.guidance = step.guidance;
  return result;
}

} // namespace

Plan make_plan(Schedule schedule, const std::vector<std::int64_t>& widths, std::int64_t growth) {
  if (!widths.empty()) {
    schedule = narrowed(std::move(schedule), *std::max_element(widths.begin(), widths.end()));
  }
  Plan plan{{}, 0, schedule.zero_slots, schedule.cells(), schedule.conditions, specials_of(schedule), schedule.kept};
  std::int64_t write_index = schedule.zero_slots;
  for (const Step& step : schedule.steps) {
    plan.steps.push_back(planned(step, plan, schedule.queries, widths));
    plan.steps.back().write_index = write_index;
    plan.slots = std::max(plan.slots, write_index + plan.steps.back().shape.width);
    write_index += step.commit;
  }
  std::int64_t live = growth == 0 ? plan.slots : 0;
  for (PlannedStep& step : plan.steps) {
    const std::int64_t needed = step.write_index + step.shape.width;
    if (needed > live) {
      live = std::min(plan.slots, (needed + growth - 1) / growth * growth);
    }
    step.shape.slots = live;
  }
  return plan;
}

void Visibility::start(std::int64_t slots) { slot_rank.assign(static_cast<std::size_t>(slots), NEVER); }

void Visibility::enter(const PlannedStep& step, std::int64_t zero_slots, std::uint8_t* mask) {
  const std::int64_t slots = step.shape.slots;
  std::int32_t* ranks = slot_rank.data();
  for (const std::int32_t slot : step.retire) {
    ranks[slot] = NEVER;
  }
  std::copy_n(step.ranks.data(), step.inputs, ranks + step.write_index);
  for (std::int64_t input = 0; input < step.shape.width; input++) {
    std::uint8_t* row = mask + input * slots;
    const std::int32_t rank = step.ranks[static_cast<std::size_t>(input)];
    const std::int64_t holes = step.holes[static_cast<std::size_t>(input)];
    for (std::int64_t slot = zero_slots; slot < slots; slot++) {
      row[slot] = ranks[slot] <= rank ? 1 : 0;
    }
    std::fill_n(row, holes, std::uint8_t{1});
    std::fill_n(row + holes, zero_slots - holes, std::uint8_t{0});
  }
  std::fill(ranks + step.write_index + step.commit, ranks + step.write_index + step.inputs, NEVER);
}

} // namespace arforge
