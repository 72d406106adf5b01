#include "schedules/rows.h"

#include <algorithm>
#include <numeric>

#include "schedules/generators.h"

namespace arforge {

Rows::Rows(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot)
    : height_(height), width_(width), rules_(rules), decoded_(static_cast<std::size_t>(height)), slot_(slot) {
  running_.reserve(decoded_.size());
  outputs_.reserve(decoded_.size());
}

void Rows::next(Step& step) {
  step.inputs.clear();
  step.targets.clear();
  step.retire.clear();
  running_.clear();
  outputs_.clear();
  step.guidance = guidance();
  feed(step);
  const std::int64_t last = running_.back();
  trial_ = decoded(last) == 0 && early(last) ? last : -1;
  for (std::size_t index = 0; index < running_.size(); index++) {
    std::int64_t& done = decoded_[static_cast<std::size_t>(running_[index])];
    step.targets.push_back({outputs_[index], static_cast<std::int32_t>(running_[index] * width_ + done++)});
  }
  step.commit = static_cast<std::int32_t>(step.inputs.size());
  slot_ += step.commit;
}

void Rows::withdraw() {
  decoded_[static_cast<std::size_t>(trial_)] = 0;
  slot_--;
}

void Rows::decide(const Step& step, std::int64_t row) {
  running_.push_back(row);
  outputs_.push_back(static_cast<std::int32_t>(step.inputs.size()));
}

std::int64_t Rows::decoded_after(std::int64_t row) const {
  return std::accumulate(decoded_.begin() + row, decoded_.end(), std::int64_t{0});
}

std::unique_ptr<Rows> rows_of(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot) {
  return rules.row_end ? ended_rows(height, width, rules, slot) : zipar_rows(height, width, rules, slot);
}

void row_table(Schedule& schedule, const RowRules& rules) {
  rules.row_end ? zipar_row_ends(schedule, rules) : zipar(schedule, rules);
}

void run_rows(Schedule& schedule, const RowRules& rules) {
  const std::unique_ptr<Rows> rows = rows_of(schedule.rows, schedule.columns, rules, 0);
  Step step = roomy_step(schedule.rows);
  while (!rows->complete()) {
    rows->next(step);
    for (const Input& given : step.inputs) {
      schedule.zero_slots = std::max<std::int64_t>(schedule.zero_slots, given.holes);
    }
    schedule.steps.push_back(step);
  }
  for (Step& each : schedule.steps) {
    for (std::int32_t& retired : each.retire) {
      retired += static_cast<std::int32_t>(schedule.zero_slots);
    }
  }
}

Step roomy_step(std::int64_t height) {
  Step step{};
  step.inputs.reserve(2 * static_cast<std::size_t>(height));
  step.targets.reserve(static_cast<std::size_t>(height));
  step.retire.reserve(static_cast<std::size_t>(height));
  return step;
}

} // namespace arforge
