// Schedules for raster-order decoders such as LlamaGen: next-token and ZipAR.
#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "arforge.hpp"
#include "schedules/generators.h"
#include "schedules/rows.h"
#include "text.h"

namespace arforge {
namespace {

// The token of cell `token_of` at the place of `cell`.
Input input_at(std::int64_t cell, std::int64_t token_of) {
  const auto place = static_cast<std::int32_t>(1 + cell);
  return {Source::cell, static_cast<std::int32_t>(token_of), place, place, 0};
}

// The decoding of one image by ZipAR: which stand-ins are in use, and what the cache holds.
class ZiparRows : public Rows {
public:
  ZiparRows(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot)
      : Rows(height, width, rules, slot), stand_ins_(static_cast<std::size_t>(height), NONE),
        written_(static_cast<std::size_t>(height * width)), in_cache_(static_cast<std::size_t>(height)) {}

  void withdraw() override;

private:
  static constexpr std::int32_t NONE = -1;

  void feed(Step& step) override;
  [[nodiscard]] double guidance() const override;
  [[nodiscard]] bool early(std::int64_t row) const override { return row > 0 && held(row - 1) != NONE; }
  [[nodiscard]] bool may_run(std::int64_t row) const;
  [[nodiscard]] Input row_input(std::int64_t row, std::int32_t at);
  [[nodiscard]] std::int64_t stand_in(std::int64_t row) const;
  [[nodiscard]] std::int32_t holes(const Input& given) const;
  [[nodiscard]] std::int32_t held(std::int64_t row) const { return stand_ins_[static_cast<std::size_t>(row)]; }
  void write(std::int64_t cell, bool there);

  std::vector<std::int32_t> stand_ins_; // (height) the slot of what stands in for the row's last token
  std::vector<bool> written_;           // (height * width) whether the cache holds the cell
  std::vector<std::int64_t> in_cache_;  // (height) how many of the row it holds
};

void ZiparRows::feed(Step& step) {
  for (std::int64_t row = 0; row < height_; row++) { // a finished row's last token has no output
    if (held(row) != NONE && decoded(row) == width_) {
      step.retire.push_back(std::exchange(stand_ins_[static_cast<std::size_t>(row)], NONE));
      const std::int64_t last = row * width_ + width_ - 1;
      step.inputs.push_back(input_at(last, last));
    }
  }
  for (std::int64_t row = 0; row < height_; row++) {
    if (decoded(row) < width_ && may_run(row)) {
      decide(step, row);
      step.inputs.push_back(row_input(row, static_cast<std::int32_t>(slot() + step.inputs.size())));
    }
  }
  for (const Input& given : step.inputs) {
    if (given.source == Source::cell) {
      write(given.rank - 1, true);
    }
  }
  for (Input& given : step.inputs) {
    given.holes = rules_.masked ? 0 : holes(given);
  }
}

void ZiparRows::write(std::int64_t cell, bool there) {
  const auto place = static_cast<std::size_t>(cell);
  in_cache_[static_cast<std::size_t>(cell / width_)] += written_[place] == there ? 0 : there ? 1 : -1;
  written_[place] = there;
}

void ZiparRows::withdraw() {
  stand_ins_[static_cast<std::size_t>(trial() - 1)] = NONE;
  write(trial() * width_ - 1, false);
  Rows::withdraw();
}

bool ZiparRows::may_run(std::int64_t row) const {
  const std::int64_t wait = row == 1 && !rules_.windowed ? width_ : rules_.window;
  return row == 0 || decoded(row - 1) >= wait;
}

Input ZiparRows::row_input(std::int64_t row, std::int32_t at) {
  const std::int64_t before = row * width_ + decoded(row) - 1;
  if (before < 0) {
    return CLASS_TOKEN;
  }
  if (decoded(row) > 0 || decoded(row - 1) == width_) {
    return input_at(before, before);
  }
  stand_ins_[static_cast<std::size_t>(row - 1)] = at;
  return input_at(before, stand_in(row - 1));
}

// The cell whose token stands in for the last of `row`.
std::int64_t ZiparRows::stand_in(std::int64_t row) const {
  if (!rules_.nearest) {
    const std::int64_t source = std::max<std::int64_t>(row - 1, 0);
    return source * width_ + decoded(source) - 1;
  }
  std::int64_t best = -1;
  std::int64_t found = 0;
  for (std::int64_t r = row; r >= 0; r--) { // of equally near cells the lowest
    const std::int64_t column = decoded(r) - 1;
    const std::int64_t distance = (row - r) * (row - r) + (width_ - 1 - column) * (width_ - 1 - column);
    if (column >= 0 && (best < 0 || distance < best)) {
      best = distance;
      found = r * width_ + column;
    }
  }
  return found;
}

// Raster positions up to the input's own that nothing has been written to.
std::int32_t ZiparRows::holes(const Input& given) const {
  if (given.source == Source::condition) {
    return 0;
  }
  const std::int64_t cell = given.rank - 1;
  const auto row = static_cast<std::ptrdiff_t>(cell / width_);
  const auto above = std::accumulate(in_cache_.begin(), in_cache_.begin() + row, std::int64_t{0});
  const auto beside = std::count(written_.begin() + row * width_, written_.begin() + cell + 1, true);
  return static_cast<std::int32_t>(given.rank - above - beside);
}

// The authors count the cells of row 0, then start again for the cells of the other rows.
double ZiparRows::guidance() const {
  const bool restarted = !rules_.windowed && decoded(0) == width_;
  return weight_after(restarted ? decoded_after(1) : decoded_after(0) - 1, rules_.cfg_interval);
}

} // namespace

void check_interval(std::int64_t cfg_interval) {
  if (cfg_interval < -1) {
    throw Error(Code::schedule,
                text("cfg-interval ", cfg_interval, " is out of range: use -1 (guidance throughout) or more"));
  }
}

double weight_after(std::int64_t decoded, std::int64_t cfg_interval) {
  return -1 < cfg_interval && cfg_interval < decoded ? 0.0 : 1.0;
}

void run_ahead(Schedule& schedule, std::int64_t jacobi) {
  const std::int64_t cells = schedule.cells();
  if (jacobi != 0 && (jacobi < 2 || jacobi > cells)) {
    throw Error(Code::schedule, text("jacobi ", jacobi, " is out of range on ", cells, " cells: use 2 to ", cells,
                                     ", or leave it out"));
  }
  schedule.jacobi = jacobi;
}

void next_token(Schedule& schedule, std::int64_t cfg_interval, std::int64_t jacobi) {
  check_interval(cfg_interval);
  run_ahead(schedule, jacobi);
  for (std::int64_t cell = 0; cell < schedule.cells(); cell++) {
    const Input given = cell == 0 ? CLASS_TOKEN : input_at(cell - 1, cell - 1);
    schedule.steps.push_back(
        {{given}, {{0, static_cast<std::int32_t>(cell)}}, 1, {}, weight_after(cell - 1, cfg_interval)});
  }
}

std::unique_ptr<Rows> zipar_rows(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot) {
  return std::make_unique<ZiparRows>(height, width, rules, slot);
}

void zipar(Schedule& schedule, const RowRules& rules) {
  if (rules.window < 1 || rules.window > schedule.columns) {
    throw Error(Code::schedule, text("window ", rules.window, " does not fit a grid of ", schedule.rows, "x",
                                     schedule.columns, ": use zipar:1 to zipar:", schedule.columns));
  }
  check_interval(rules.cfg_interval);
  run_rows(schedule, rules);
}

} // namespace arforge
