// Raster schedules of models whose grid rows end in a token: next-token and ZipAR.
#include <memory>
#include <vector>

#include "arforge.hpp"
#include "schedules/generators.h"
#include "schedules/rows.h"
#include "text.h"

namespace arforge {
namespace {

// The decoding of one image whose rows end in a token.
class EndedRows : public Rows {
public:
  EndedRows(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot)
      : Rows(height, width, rules, slot), row_end_(static_cast<std::int32_t>(rules.row_end.value_or(0))),
        ended_(static_cast<std::size_t>(height)) {}

private:
  void feed(Step& step) override;
  [[nodiscard]] double guidance() const override { return weight_after(decoded_after(0) - 1, rules_.cfg_interval); }
  [[nodiscard]] bool early(std::int64_t row) const override { return row > 0 && decoded(row - 1) < width_; }
  [[nodiscard]] Input input(std::int64_t row) const;

  std::int32_t row_end_;
  std::vector<bool> ended_; // (height) rows whose last cell is in the cache
};

void EndedRows::feed(Step& step) {
  for (std::int64_t row = 0; row < height_; row++) {
    if (row > 0 && decoded(row) == 0 && decoded(row - 1) < rules_.window) {
      break;
    }
    if (decoded(row) < width_) {
      decide(step, row);
    } else if (row == height_ - 1 || ended_[static_cast<std::size_t>(row)]) {
      continue; // nothing comes after the last cell
    } else {
      ended_[static_cast<std::size_t>(row)] = true;
    }
    step.inputs.push_back(input(row));
  }
}

// What stands before a cell: the cell beside it, the end of the row above, or the condition.
Input EndedRows::input(std::int64_t row) const {
  const std::int64_t column = decoded(row);
  if (row == 0 && column == 0) {
    return CLASS_TOKEN;
  }
  const auto place = static_cast<std::int32_t>(row * (width_ + 1) + column);
  if (column == 0) {
    return {Source::special, row_end_, place, place, 0};
  }
  return {Source::cell, static_cast<std::int32_t>(row * width_ + column - 1), place, place, 0};
}

} // namespace

std::unique_ptr<Rows> ended_rows(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot) {
  return std::make_unique<EndedRows>(height, width, rules, slot);
}

void check_window_with_end(const Schedule& schedule, std::int64_t window) {
  if (window < 2 || window > schedule.columns + 1) {
    throw Error(Code::schedule,
                text("window ", window, " does not fit a grid of ", schedule.rows, "x", schedule.columns,
                     " whose rows end in a token: use zipar:2 to zipar:", schedule.columns + 1));
  }
}

void zipar_row_ends(Schedule& schedule, const RowRules& rules) {
  check_window_with_end(schedule, rules.window + 1);
  check_interval(rules.cfg_interval);
  run_rows(schedule, rules);
}

} // namespace arforge
