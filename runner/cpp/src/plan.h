// Turns a schedule into the arrays of its steps, once, so that the step loop only copies and compares.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backends/engine.h"
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
};

// The inputs of a table in the order of their cache slots. Each stays, and sees only what stands before it.
struct Line {
  std::vector<std::int64_t> columns;   // (inputs) of the known tokens that hold theirs
  std::vector<std::int64_t> positions; // (inputs)
  std::vector<std::int64_t> sources;   // (inputs) the cell that each is the token of; -1 where it is no cell's
  std::vector<std::int64_t> targets;   // (inputs) the cell that each decides; -1 where it decides none
  std::vector<double> guidance;        // (inputs) weights of guidance
  std::vector<std::int64_t> deciders;  // (cells) the input that decides each
  std::vector<std::int32_t> ranks;     // (inputs)
  std::vector<std::int32_t> holes;     // (inputs) zero slots that each sees
  std::vector<std::int64_t> until;     // (inputs) the first input that no longer sees it, since it is retired
  std::vector<std::int64_t> steps;     // (inputs + 1) steps of the table that the first so many inputs are all of
  bool all_before;                     // whether each sees all inputs before it and nothing else but prompts

  [[nodiscard]] std::int64_t inputs() const { return static_cast<std::int64_t>(columns.size()); }
  // Whether an input sees another, which is not behind it.
  [[nodiscard]] bool sees(std::int64_t input, std::int64_t other) const {
    const auto from = static_cast<std::size_t>(input);
    const auto to = static_cast<std::size_t>(other);
    return input < until[to] && ranks[to] <= ranks[from];
  }
};

struct Plan {
  std::vector<PlannedStep> steps;
  std::vector<Shape> shapes;                // of the calls, each once, the first call's first
  std::int64_t slots;                       // of the cache, all of them
  std::int64_t zero_slots, prompt_slots;    // at its beginning, in this order
  std::int64_t cells, conditions, specials; // columns of the known tokens, in this order
  std::int64_t down, across;                // rows of the grid, and cells of each
  std::vector<std::int32_t> kept;           // cells whose tokens the request brings
  std::int64_t growth;                      // of the slots that a call is given; 0: always all
  std::optional<Line> line;                 // of a schedule that runs ahead on drafts
  std::int64_t jacobi;                      // inputs that a call of it has at most
  std::int64_t jacobi_width;                // of those calls but the first, which has the condition alone
  std::int64_t first_width;                 // of that one
  std::optional<RowRules> rules;            // of images whose rows start by themselves
  std::vector<std::int64_t> widths;         // of the engine; empty: any
  std::uint64_t number = 0;                 // no other plan of this process has it

  // Whether images of a batch get on as their tokens allow, rather than all alike.
  [[nodiscard]] bool own_pace() const { return line || rules; }
  // Of the widest call, where the images of a batch all write to the same slots; else 0.
  [[nodiscard]] std::int64_t lockstep_width() const;
  // The slots that a call is given which reaches to slot `needed`.
  [[nodiscard]] std::int64_t live(std::int64_t needed) const;
  // What a decoding of it counts up to: steps, or cells where rows start by themselves.
  [[nodiscard]] std::int64_t length() const;
  // Calls that a generation takes at most.
  [[nodiscard]] std::int64_t calls() const;
  // (images, cells) that are known after so many steps.
  [[nodiscard]] std::vector<bool> decided(std::int64_t done, std::int64_t images) const;
};

// `widths`: those that the engine was built for, ascending or not; empty: any. `growth`: a call is given the slots that
// are in use, rounded up to a multiple of it, or of twice it and so on where they are many; 0: always all.
// `prompt_slots`: slots that prompts fill before the first step, between the zero slots and the schedule's own.
// `exact_width`: the engine's, 0 where it is not known; running ahead keeps to it, since wider calls could round to
// other tokens. Throws Error (engine) if all widths are too narrow.
Plan make_plan(Schedule schedule, const std::vector<std::int64_t>& widths, std::int64_t growth,
               std::int64_t prompt_slots, std::int64_t exact_width = 0);

// How many images of a request, which asks for so many, an engine decodes at a time by all of these plans.
std::int64_t images_together(std::int64_t asked, const std::vector<const Plan*>& plans, const EngineFacts& able);

// The step at the least width of the engine that is at least `width`, over `planned`; allocates nothing where that has
// room. Write index and slots are the caller's.
void plan_step(const Step& step, const Plan& plan, bool queries, std::int64_t width, PlannedStep& planned);

// The least of an engine's widths (none: any) that is at least `width`. Throws Error (engine) if all are too narrow.
std::int64_t engine_width(std::int64_t width, const std::vector<std::int64_t>& widths);

// The same decoding in steps of at most `widest` inputs, wherever steps can be cut: before an input that no earlier
// one of the step sees, if what comes before is kept and decides nothing.
Schedule narrowed(Schedule schedule, std::int64_t widest);

// What a generation knows between steps.
struct State {
  std::vector<std::int64_t> known; // (rows, columns): cells, condition tokens, special tokens
  std::int64_t columns;
  std::int64_t images, rows;        // rows beyond the images are unconditional
  std::vector<std::int64_t> before; // (rows) how many prompt slots each sees, the last ones
  std::vector<std::int64_t> places; // (rows) added to a step's positions: what stands before, where those are in line
};

// The tokens known before the first step, a prompt a row: the images', then those of unconditional rows. `tokens`
// (images, cells): those of kept cells count.
State start_of(const Plan& plan, const ModelFacts& model, std::int64_t images, const std::vector<Prompt>& prompts,
               const std::vector<std::int64_t>& tokens);

} // namespace arforge
