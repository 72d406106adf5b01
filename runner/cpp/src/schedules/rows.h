// Images that are decoded row by row, each of them as far as it is.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "schedules/schedule.h"

namespace arforge {

// How far the rows of one image are, and what its cache holds. In `next` every row starts as soon as it may.
//
// One row at most is on trial: it is the last of the step, so its input and its output are, and `withdraw` undoes it.
class Rows {
public:
  // Of an image of which nothing is decided. `slot`: the first that it writes.
  Rows(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot);
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  virtual ~Rows() = default;

  [[nodiscard]] bool complete() const { return decoded_.back() == width_; }
  // The first cache slot that the next step writes.
  [[nodiscard]] std::int64_t slot() const { return slot_; }
  // The row that the last step started while the one above it was not complete; -1 where there is none.
  [[nodiscard]] std::int64_t trial() const { return trial_; }

  // Writes the next step over `step`; allocates nothing where that has room.
  void next(Step& step);
  // The row on trial has not started after all; the next step will have it again.
  virtual void withdraw();

protected:
  // Inputs of the step, with the slots that it retires. Enters the rows that they decide a cell of, and those inputs.
  virtual void feed(Step& step) = 0;
  [[nodiscard]] virtual double guidance() const = 0;
  // Whether the first cell of `row` is decided next, though the row above is not complete.
  [[nodiscard]] virtual bool early(std::int64_t row) const = 0;

  [[nodiscard]] std::int64_t decoded(std::int64_t row) const { return decoded_[static_cast<std::size_t>(row)]; }
  [[nodiscard]] std::int64_t decoded_after(std::int64_t row) const; // cells of all rows from `row` on
  void decide(const Step& step, std::int64_t row);                  // a cell of it, by the input that comes next

  std::int64_t height_, width_;
  RowRules rules_;

private:
  std::vector<std::int64_t> decoded_; // (height) cells of each row, those that the last step samples among them
  std::vector<std::int64_t> running_; // rows that the step decides a cell of
  std::vector<std::int32_t> outputs_; // the output of each
  std::int64_t slot_;
  std::int64_t trial_ = -1;
};

// Those of ZipAR (arXiv 2412.04062), and of its like where rows end in a token.
std::unique_ptr<Rows> rows_of(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot);

// A step with room for all that one of such an image has.
Step roomy_step(std::int64_t height);

} // namespace arforge
