#include "schedules/visibility.h"

#include <algorithm>
#include <limits>

namespace arforge {
namespace {

constexpr std::int32_t NEVER = std::numeric_limits<std::int32_t>::max(); // of slots that are unwritten or retired

} // namespace

void Visibility::start(std::int64_t slots) { slot_rank.assign(static_cast<std::size_t>(slots), NEVER); }

void Visibility::enter(const RankedStep& step, std::int64_t slots, std::int64_t zero_slots, std::uint8_t* mask) {
  std::int32_t* ranks = slot_rank.data();
  for (const std::int32_t slot : step.retire) {
    ranks[slot] = NEVER;
  }
  std::copy_n(step.ranks.data(), step.inputs, ranks + step.write_index);
  for (std::size_t input = 0; input < step.ranks.size(); input++) {
    std::uint8_t* row = mask + static_cast<std::int64_t>(input) * slots;
    const std::int32_t rank = step.ranks[input];
    const std::int64_t holes = step.holes[input];
    for (std::int64_t slot = zero_slots; slot < slots; slot++) {
      row[slot] = ranks[slot] <= rank ? 1 : 0;
    }
    std::fill_n(row, holes, std::uint8_t{1});
    std::fill_n(row + holes, zero_slots - holes, std::uint8_t{0});
  }
  std::fill(ranks + step.write_index + step.commit, ranks + step.write_index + step.inputs, NEVER);
}

bool sees_all_before(const Schedule& schedule) {
  if (schedule.queries) {
    return false;
  }
  std::int64_t before = std::numeric_limits<std::int64_t>::min(); // the last rank
  for (const Step& step : schedule.steps) {
    if (step.commit != static_cast<std::int64_t>(step.inputs.size()) || !step.retire.empty()) {
      return false;
    }
    for (const Input& given : step.inputs) {
      if (given.holes != 0 || given.rank <= before) {
        return false;
      }
      before = given.rank;
    }
  }
  return true;
}

} // namespace arforge
