// A decoding schedule: which tokens each step feeds, what they may see, and which cells they decide.
//
// The cache is filled in the order of generation: first `zero_slots` slots that stay zero, then each step's inputs,
// contiguously. A slot is visible to an input when its rank is at most the input's rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace arforge {

// Where an input's token comes from; `Input::value` says which.
enum class Source : std::int32_t {
  cell = 0,      // a cell that is kept, or was sampled in an earlier step
  condition = 1, // the request's condition token of that index
  special = 2,   // the model's special token of that index
};

struct Input {
  Source source;
  std::int32_t value;
  std::int32_t position; // the condition's is 0, a cell's 1 + cell; where rows end in a token, those count too
  std::int32_t rank;
  std::int32_t holes; // how many zero slots it sees
};

inline constexpr Input CLASS_TOKEN = {Source::condition, 0, 0, 0, 0};

// Output `row` of the step decides `cell`; there is one output an input, or a query.
struct Target {
  std::int32_t row, cell;
};

struct Step {
  std::vector<Input> inputs;        // (width)
  std::vector<Target> targets;      // (targets)
  std::int32_t commit;              // how many of this step's cache slots stay
  std::vector<std::int32_t> retire; // slots that neither this step's inputs nor later ones see
  double guidance;                  // the step's scale is 1 + (request's scale - 1) * guidance
};

struct Schedule {
  std::string specification;  // canonical, such as "zipar:16"
  std::int64_t rows, columns; // of the grid
  std::vector<Step> steps;
  std::int64_t conditions;
  std::int64_t zero_slots;
  bool queries;                   // the model is asked for the targets' cells, not for what follows each input
  std::vector<std::int32_t> kept; // cells whose tokens the request brings; the steps decide the others
  std::int64_t jacobi = 0;        // inputs that may run ahead on drafts in one call; 0: the steps as they stand

  [[nodiscard]] std::int64_t cells() const { return rows * columns; }
};

inline constexpr std::int64_t MAX_CELLS = 1 << 16;

std::int64_t slots_of(const Schedule& schedule);    // cache slots that the schedule touches
std::int64_t specials_of(const Schedule& schedule); // special tokens that the model must have
std::int64_t last_position_of(const Schedule& schedule);

// The schedule, if a runner can execute it, else throws Error (schedule): proves that every cell is kept or decided
// once, that every input exists before it is read, that positions and ranks are in range, and that the cache is used
// consistently: two slots at most for each cell and condition token, beside the zero slots. Every generator and reader
// goes through it.
Schedule checked(Schedule schedule);

} // namespace arforge
