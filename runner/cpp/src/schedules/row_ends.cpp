// Raster schedules of models whose grid rows end in a token: next-token and ZipAR.
#include <algorithm>
#include <utility>

#include "arforge.hpp"
#include "schedules/generators.h"
#include "text.h"

namespace arforge {
namespace {

// What stands before a cell: the cell beside it, the end of the row above, or the condition.
Input input_before(const Schedule& schedule, std::int64_t row_end, std::int64_t row, std::int64_t column) {
  if (row == 0 && column == 0) {
    return CLASS_TOKEN;
  }
  const auto place = static_cast<std::int32_t>(row * (schedule.columns + 1) + column);
  if (column == 0) {
    return {Source::special, static_cast<std::int32_t>(row_end), place, place, 0};
  }
  return {Source::cell, static_cast<std::int32_t>(row * schedule.columns + column - 1), place, place, 0};
}

// Every started row gains one cell a step; the row below starts when it has `delay` cells.
void decode_rows(Schedule& schedule, std::int64_t row_end, std::int64_t delay, std::int64_t cfg_interval) {
  const std::int64_t width = schedule.columns;
  const std::int64_t steps = (schedule.rows - 1) * delay + width;
  for (std::int64_t index = 0; index < steps; index++) {
    Step step{{}, {}, 0, {}, 0};
    std::int64_t decided = 0;
    for (std::int64_t row = 0; row < schedule.rows; row++) {
      const std::int64_t column = index - row * delay; // the cell that this row decides now
      decided += std::clamp<std::int64_t>(column, 0, width);
      const bool last = row == schedule.rows - 1; // nothing comes after its last cell
      if (column < 0 || column > width || (column == width && last)) {
        continue;
      }
      if (column < width) {
        step.targets.push_back(
            {static_cast<std::int32_t>(step.inputs.size()), static_cast<std::int32_t>(row * width + column)});
      }
      step.inputs.push_back(input_before(schedule, row_end, row, column));
    }
    step.commit = static_cast<std::int32_t>(step.inputs.size());
    step.guidance = weight_after(decided - 1, cfg_interval);
    schedule.steps.push_back(std::move(step));
  }
}

} // namespace

void next_token_row_ends(Schedule& schedule, std::int64_t row_end, std::int64_t cfg_interval, std::int64_t jacobi) {
  run_ahead(schedule, jacobi);
  check_interval(cfg_interval);
  decode_rows(schedule, row_end, schedule.columns, cfg_interval);
}

void zipar_row_ends(Schedule& schedule, std::int64_t row_end, std::int64_t window, std::int64_t cfg_interval,
                    std::int64_t jacobi) {
  run_ahead(schedule, jacobi);
  if (window < 2 || window > schedule.columns + 1) {
    throw Error(Code::schedule,
                text("window ", window, " does not fit a grid of ", schedule.rows, "x", schedule.columns,
                     " whose rows end in a token: use zipar:2 to zipar:", schedule.columns + 1));
  }
  check_interval(cfg_interval);
  decode_rows(schedule, row_end, window - 1, cfg_interval);
}

} // namespace arforge
