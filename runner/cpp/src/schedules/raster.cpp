// Schedules for raster-order decoders such as LlamaGen: next-token and ZipAR.
#include <algorithm>
#include <numeric>
#include <utility>

#include "arforge.hpp"
#include "schedules/generators.h"
#include "text.h"

namespace arforge {
namespace {

// The token of cell `token_of` at the place of `cell`.
Input input_at(std::int64_t cell, std::int64_t token_of) {
  const auto place = static_cast<std::int32_t>(1 + cell);
  return {Source::cell, static_cast<std::int32_t>(token_of), place, place, 0};
}

struct StandIn {
  std::int64_t row; // whose last token is stood in for
  std::int32_t slot;
};

// The decoding of one image: how far each row is, and what the cache holds.
struct Zipar {
  std::int64_t height, width;
  ZiparOptions options;
  std::vector<std::int64_t> decoded;      // (height) cells of each row
  std::vector<std::vector<bool>> written; // (height, width) whether the cache holds the cell
  std::vector<std::int64_t> in_cache;     // (height) how many of the row it holds
  std::vector<StandIn> stand_ins;
  std::int32_t slot = 0;

  [[nodiscard]] Step step(std::vector<Input> inputs, const std::vector<std::int64_t>& rows,
                          std::vector<std::int32_t> retire);
  [[nodiscard]] Step next();
  [[nodiscard]] bool may_run(std::int64_t row) const;
  [[nodiscard]] Input row_input(std::int64_t row, std::int32_t at);
  [[nodiscard]] std::int64_t stand_in(std::int64_t row) const;
  [[nodiscard]] std::int32_t holes(const Input& given) const;
  [[nodiscard]] double guidance() const;
};

Step Zipar::next() {
  std::vector<Input> inputs;
  std::vector<std::int32_t> retire;
  std::vector<StandIn> waiting;
  for (const StandIn& held : stand_ins) {
    if (decoded[static_cast<std::size_t>(held.row)] < width) {
      waiting.push_back(held);
      continue;
    }
    retire.push_back(held.slot);
    const std::int64_t last = held.row * width + width - 1;
    inputs.push_back(input_at(last, last));
  }
  stand_ins = std::move(waiting);
  std::vector<std::int64_t> rows;
  for (std::int64_t row = 0; row < height; row++) {
    if (decoded[static_cast<std::size_t>(row)] < width && may_run(row)) {
      rows.push_back(row);
    }
  }
  for (const std::int64_t row : rows) {
    inputs.push_back(row_input(row, slot + static_cast<std::int32_t>(inputs.size())));
  }
  return step(std::move(inputs), rows, std::move(retire));
}

Step Zipar::step(std::vector<Input> inputs, const std::vector<std::int64_t>& rows, std::vector<std::int32_t> retire) {
  const double weight = guidance();
  for (const Input& given : inputs) {
    if (given.source == Source::cell) {
      const auto row = static_cast<std::size_t>((given.rank - 1) / width);
      const auto column = static_cast<std::size_t>((given.rank - 1) % width);
      in_cache[row] += written[row][column] ? 0 : 1;
      written[row][column] = true;
    }
  }
  if (!options.masked) {
    for (Input& given : inputs) {
      given.holes = holes(given);
    }
  }
  std::vector<Target> targets;
  auto output = static_cast<std::int32_t>(inputs.size() - rows.size()); // a finished row's last token has no output
  for (const std::int64_t row : rows) {
    std::int64_t& done = decoded[static_cast<std::size_t>(row)];
    targets.push_back({output++, static_cast<std::int32_t>(row * width + done++)});
  }
  const auto commit = static_cast<std::int32_t>(inputs.size());
  slot += commit;
  return {std::move(inputs), std::move(targets), commit, std::move(retire), weight};
}

bool Zipar::may_run(std::int64_t row) const {
  const std::int64_t wait = row == 1 && !options.windowed ? width : options.window;
  return row == 0 || decoded[static_cast<std::size_t>(row - 1)] >= wait;
}

Input Zipar::row_input(std::int64_t row, std::int32_t at) {
  const std::int64_t before = row * width + decoded[static_cast<std::size_t>(row)] - 1;
  if (decoded[static_cast<std::size_t>(row)] > 0 || decoded[static_cast<std::size_t>(row - 1)] == width) {
    return input_at(before, before);
  }
  stand_ins.push_back({row - 1, at});
  return input_at(before, stand_in(row - 1));
}

// The cell whose token stands in for the last of `row`.
std::int64_t Zipar::stand_in(std::int64_t row) const {
  if (!options.nearest) {
    const std::int64_t source = std::max<std::int64_t>(row - 1, 0);
    return source * width + decoded[static_cast<std::size_t>(source)] - 1;
  }
  std::int64_t best = -1;
  std::int64_t found = 0;
  for (std::int64_t r = row; r >= 0; r--) { // of equally near cells the lowest
    const std::int64_t column = decoded[static_cast<std::size_t>(r)] - 1;
    const std::int64_t distance = (row - r) * (row - r) + (width - 1 - column) * (width - 1 - column);
    if (column >= 0 && (best < 0 || distance < best)) {
      best = distance;
      found = r * width + column;
    }
  }
  return found;
}

// Raster positions up to the input's own that nothing has been written to.
std::int32_t Zipar::holes(const Input& given) const {
  if (given.source == Source::condition) {
    return 0;
  }
  const auto row = static_cast<std::size_t>((given.rank - 1) / width);
  const auto column = static_cast<std::ptrdiff_t>((given.rank - 1) % width);
  const auto above =
      std::accumulate(in_cache.begin(), in_cache.begin() + static_cast<std::ptrdiff_t>(row), std::int64_t{0});
  const auto beside = std::count(written[row].begin(), written[row].begin() + column + 1, true);
  return static_cast<std::int32_t>(given.rank - above - beside);
}

// The authors count the cells of row 0, then start again for the cells of the other rows.
double Zipar::guidance() const {
  const auto later = std::accumulate(decoded.begin() + 1, decoded.end(), std::int64_t{0});
  const bool restarted = !options.windowed && decoded.front() == width;
  return weight_after(restarted ? later : later + decoded.front() - 1, options.cfg_interval);
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

void zipar(Schedule& schedule, const ZiparOptions& options) {
  run_ahead(schedule, options.jacobi);
  if (options.window < 1 || options.window > schedule.columns) {
    throw Error(Code::schedule, text("window ", options.window, " does not fit a grid of ", schedule.rows, "x",
                                     schedule.columns, ": use zipar:1 to zipar:", schedule.columns));
  }
  check_interval(options.cfg_interval);
  const auto height = static_cast<std::size_t>(schedule.rows);
  const auto width = static_cast<std::size_t>(schedule.columns);
  Zipar state{schedule.rows,
              schedule.columns,
              options,
              std::vector<std::int64_t>(height),
              std::vector<std::vector<bool>>(height, std::vector<bool>(width)),
              std::vector<std::int64_t>(height),
              {}};
  schedule.steps.push_back(state.step({CLASS_TOKEN}, {0}, {}));
  while (state.decoded.back() < schedule.columns) {
    schedule.steps.push_back(state.next());
  }
  for (const Step& step : schedule.steps) {
    for (const Input& given : step.inputs) {
      schedule.zero_slots = std::max<std::int64_t>(schedule.zero_slots, given.holes);
    }
  }
  for (Step& step : schedule.steps) {
    for (std::int32_t& retired : step.retire) {
      retired += static_cast<std::int32_t>(schedule.zero_slots);
    }
  }
}

} // namespace arforge
