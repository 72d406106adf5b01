// The mask rule, in its one place: a slot is visible to an input when its rank is at most the input's rank.
#pragma once

#include <cstdint>
#include <vector>

#include "schedules/schedule.h"

namespace arforge {

// What the rule needs of one step.
struct RankedStep {
  std::vector<std::int32_t> ranks;  // (width)
  std::vector<std::int32_t> holes;  // (width) how many zero slots each sees
  std::vector<std::int32_t> retire; // slots that are hidden from now on
  std::int64_t write_index;         // the first slot that it writes
  std::int64_t inputs, commit;      // how many slots hold inputs, and how many of them stay
};

// Ranks of the cache's slots as a schedule proceeds.
struct Visibility {
  std::vector<std::int32_t> slot_rank; // (slots)

  void start(std::int64_t slots);

  // Enters a step and writes its mask (width, slots), bytes 0 and 1. Slots that it does not keep are forgotten.
  void enter(const RankedStep& step, std::int64_t slots, std::int64_t zero_slots, std::uint8_t* mask);
};

// Whether every input sees the slots up to its own and no others, as next-token decoding's do.
bool sees_all_before(const Schedule& schedule);

} // namespace arforge
