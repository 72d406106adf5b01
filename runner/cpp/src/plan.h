// Turns a schedule into the arrays of its steps, once, so that the step loop only copies and compares.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "bundle/bundle.h"
#include "schedules/schedule.h"

namespace arforge {

// The step graph's shape in one step; `queries` is 0 where the model has none, `slots` those that the caches have.
struct Shape {
  std::int64_t width, queries, slots;
  bool operator<(const Shape& other) const {
    return std::tie(width, queries, slots) < std::tie(other.width, other.queries, other.slots);
  }
};

// One step at the width that the engine runs it with; padding repeats the last input and is never kept.
struct PlannedStep {
  Shape shape;
  std::vector<std::int64_t> columns;         // (width) columns of the known tokens that hold the inputs' tokens
  std::vector<std::int64_t> positions;       // (width)
  std::vector<std::int32_t> ranks;           // (width)
  std::vector<std::int32_t> holes;           // (width)
  std::vector<std::int32_t> retire;          // slots that are hidden from now on
  std::int64_t write_index;                  // the first slot that it writes
  std::int64_t inputs, commit;               // how many slots hold inputs, and how many of them stay
  std::vector<std::int64_t> query_positions; // (queries)
  std::vector<std::int64_t> target_rows;     // (targets)
  std::vector<std::int64_t> target_cells;    // (targets)
  double guidance;
};

struct Plan {
  std::vector<PlannedStep> steps;
  std::int64_t slots, zero_slots;
  std::int64_t cells, conditions, specials; // columns of the known tokens, in this order
  std::vector<std::int32_t> kept;           // cells whose tokens the request brings
};

// `widths`: those that the engine was built for, ascending or not; empty: any. `growth`: a step is given the slots that
// are in use, rounded up to a multiple of it; 0: always all. Throws Error (engine) where all widths are too narrow.
Plan make_plan(Schedule schedule, const std::vector<std::int64_t>& widths, std::int64_t growth);

// The same decoding in steps of at most `widest` inputs, wherever steps can be cut: before an input that no earlier
// one of the step sees, if what comes before is kept and decides nothing.
Schedule narrowed(Schedule schedule, std::int64_t widest);

// Ranks of the cache's slots as a plan proceeds: a slot is visible to an input when its rank is at most the input's.
struct Visibility {
  std::vector<std::int32_t> slot_rank; // (slots)

  void start(std::int64_t slots);

  // Enters a step and writes its mask (width, the step's slots), bytes 0 and 1. Slots that it does not keep are
  // forgotten.
  void enter(const PlannedStep& step, std::int64_t zero_slots, std::uint8_t* mask);
};

} // namespace arforge
