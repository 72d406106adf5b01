// Turns a schedule into the arrays of its steps, once, so that the step loop only copies and compares.
#pragma once

#include <cstdint>
#include <vector>

#include "bundle/facts.h"
#include "schedules/schedule.h"
#include "schedules/visibility.h"
#include "step_graph.h"

namespace arforge {

struct Prompt; // of conditions.h

// One step at the width that the engine runs it with; padding repeats the last input and is never kept.
struct PlannedStep : RankedStep {
  Shape shape;
  std::vector<std::int64_t> columns;         // (width) columns of the known tokens that hold the inputs' tokens
  std::vector<std::int64_t> positions;       // (width)
  std::vector<std::int64_t> query_positions; // (queries)
  std::vector<std::int64_t> target_rows;     // (targets)
  std::vector<std::int64_t> target_cells;    // (targets)
  double guidance;

  // This step's guidance scale in a request of scale `guidance`.
  [[nodiscard]] double scale(double request) const { return 1 + (request - 1) * guidance; }
};

struct Plan {
  std::vector<PlannedStep> steps;
  std::vector<Shape> shapes;                // of the steps, each once, in the order of their first
  std::int64_t slots;                       // of the cache, all of them
  std::int64_t zero_slots, prompt_slots;    // at its beginning, in this order
  std::int64_t cells, conditions, specials; // columns of the known tokens, in this order
  std::vector<std::int32_t> kept;           // cells whose tokens the request brings
};

// `widths`: those that the engine was built for, ascending or not; empty: any. `growth`: a step is given the slots that
// are in use, rounded up to a multiple of it, or of twice it and so on where they are many; 0: always all.
// `prompt_slots`: slots that prompts fill before the first step, between the zero slots and the schedule's own. Throws
// Error (engine) if all widths are too narrow.
Plan make_plan(Schedule schedule, const std::vector<std::int64_t>& widths, std::int64_t growth,
               std::int64_t prompt_slots);

// The same decoding in steps of at most `widest` inputs, wherever steps can be cut: before an input that no earlier
// one of the step sees, if what comes before is kept and decides nothing.
Schedule narrowed(Schedule schedule, std::int64_t widest);

// What a generation holds between steps.
struct State {
  std::vector<std::int64_t> known; // (rows, columns): cells, condition tokens, special tokens
  std::int64_t columns;
  std::int64_t images, rows;        // rows beyond the images are unconditional
  std::vector<std::int64_t> before; // (rows) how many prompt slots each sees, the last ones
  std::vector<std::int64_t> places; // (rows) added to a step's positions: what stands before, where those are in line
  Visibility visibility;
};

// The tokens known before the first step, a prompt a row: the images', then those of unconditional rows. `tokens`
// (images, cells): those of kept cells count.
State start_of(const Plan& plan, const ModelFacts& model, std::int64_t images, const std::vector<Prompt>& prompts,
               const std::vector<std::int64_t>& tokens);

// Writes a step's tokens, places and masks; the tokens come from what is known. Allocates nothing, nor does `store`.
void fill(const PlannedStep& step, const Plan& plan, State& state, StepBuffers& buffers);

// Enters the sampled tokens into every row, conditional and not.
void store(const PlannedStep& step, const StepBuffers& buffers, State& state);

} // namespace arforge
