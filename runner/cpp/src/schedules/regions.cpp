// The schedule of PAR. The first cell of each region is decided alone. The transition step feeds the last of them and
// the transition tokens; from there every step feeds the last group, and its k-th output decides the k-th cell of the
// next. A group sees itself and all before it.
#include <cmath>

#include "arforge.hpp"
#include "schedules/generators.h"
#include "text.h"

namespace arforge {
namespace {

// Cells in sequence order: groups by the place inside a region, in each group the regions, both raster.
std::vector<std::int32_t> region_order(const Schedule& schedule, std::int64_t regions) {
  const auto side =
      static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(std::max(regions, std::int64_t{0})))));
  if (regions < 2 || regions > MAX_CELLS || side * side != regions || schedule.rows % side != 0 ||
      schedule.columns % side != 0) {
    throw Error(Code::schedule, text(regions, " regions do not fit a grid of ", schedule.rows, "x", schedule.columns,
                                     ": use a square number such as 4 or 16 whose root divides both sides"));
  }
  const std::int64_t rows = schedule.rows / side;
  const std::int64_t columns = schedule.columns / side;
  std::vector<std::int32_t> order;
  for (std::int64_t place = 0; place < rows * columns; place++) {
    for (std::int64_t region = 0; region < regions; region++) {
      const std::int64_t row = region / side * rows + place / columns;
      const std::int64_t column = region % side * columns + place % columns;
      order.push_back(static_cast<std::int32_t>(row * schedule.columns + column));
    }
  }
  return order;
}

} // namespace

void par(Schedule& schedule, std::int64_t regions) {
  const std::vector<std::int32_t> order = region_order(schedule, regions);
  const auto members = static_cast<std::int32_t>(regions);
  const auto input = [&](std::int32_t place, std::int32_t rank) {
    const std::int32_t cell = order[static_cast<std::size_t>(place)];
    return Input{Source::cell, cell, 1 + cell, rank, 0};
  };
  for (std::int32_t index = 0; index < members; index++) {
    const Input given = index == 0 ? CLASS_TOKEN : input(index - 1, index);
    schedule.steps.push_back({{given}, {{0, order[static_cast<std::size_t>(index)]}}, 1, {}, 1.0});
  }
  for (std::int32_t first = members; first < static_cast<std::int32_t>(order.size()); first += members) {
    Step step{{}, {}, members, {}, 1.0};
    for (std::int32_t member = 0; member < members; member++) {
      if (first > members) {
        step.inputs.push_back(input(first - members + member, first));
      } else if (member == 0) {
        step.inputs.push_back(input(members - 1, members));
      } else {
        step.inputs.push_back({Source::special, member - 1, 0, members, 0});
      }
      step.targets.push_back({member, order[static_cast<std::size_t>(first) + static_cast<std::size_t>(member)]});
    }
    schedule.steps.push_back(std::move(step));
  }
}

} // namespace arforge
