// A decoding schedule: which tokens each step feeds, what they may see, and which cells they decide.
//
// The cache is filled in the order of generation: first `zero_slots` slots that stay zero, then each step's inputs,
// contiguously. A slot is visible to an input when its rank is at most the input's rank.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
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

  bool operator==(const Input& other) const {
    return std::tie(source, value, position, rank, holes) ==
           std::tie(other.source, other.value, other.position, other.rank, other.holes);
  }
};

inline constexpr Input CLASS_TOKEN = {Source::condition, 0, 0, 0, 0};

// Output `row` of the step decides `cell`; there is one output an input, or a query.
struct Target {
  std::int32_t row, cell;

  bool operator==(const Target& other) const { return row == other.row && cell == other.cell; }
};

struct Step {
  std::vector<Input> inputs;        // (width)
  std::vector<Target> targets;      // (targets)
  std::int32_t commit;              // how many of this step's cache slots stay
  std::vector<std::int32_t> retire; // slots that neither this step's inputs nor later ones see
  double guidance;                  // the step's scale is 1 + (request's scale - 1) * guidance

  bool operator==(const Step& other) const {
    return std::tie(inputs, targets, commit, retire, guidance) ==
           std::tie(other.inputs, other.targets, other.commit, other.retire, other.guidance);
  }
};

// How the rows of ZipAR follow one another.
struct RowRules {
  std::int64_t window;                 // a row starts once the one above has that many cells
  bool windowed;                       // so does row 1; otherwise it waits for the whole of row 0, as published
  bool nearest;                        // a row starts from the nearest decided cell; otherwise as published
  bool masked;                         // cells that are not written yet are hidden; else zero slots, as published
  std::int64_t cfg_interval;           // cells after that many and one (if not -1) use conditional logits alone
  std::optional<std::int64_t> row_end; // the special token that ends each row, if there is one
};

struct Schedule {
  std::string specification;  // canonical, such as "zipar:16"
  std::int64_t rows, columns; // of the grid
  std::vector<Step> steps;
  std::int64_t conditions;
  std::int64_t zero_slots;
  bool queries;                       // the model is asked for the targets' cells, not for what follows each input
  std::vector<std::int32_t> kept;     // cells whose tokens the request brings; the steps decide the others
  std::int64_t jacobi = 0;            // inputs that may run ahead on drafts in one call; 0: the steps as they stand
  std::optional<RowRules> rules = {}; // rows start as an image's tokens allow; the steps are those if they always did

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
