// The schedule of ARPG. Each step feeds the cells of the last one and queries the next; the tokens of kept cells are
// fed with the class, in the same order and as in training.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "arforge.hpp"
#include "randomness.h"
#include "schedules/generators.h"
#include "text.h"

namespace arforge {
namespace {

constexpr double PI = 3.141592653589793;
constexpr std::uint64_t ORDER_STREAM = 1; // of the generator, apart from the one that samples

// The cells sorted by their uniform number of that seed, those that `first` holds before the others.
std::vector<std::int32_t> sequence_of(std::int64_t cells, std::uint64_t seed, const std::vector<bool>& first) {
  std::vector<float> numbers(static_cast<std::size_t>(cells));
  for (std::size_t cell = 0; cell < numbers.size(); cell++) {
    numbers[cell] = uniform(seed, cell, ORDER_STREAM);
  }
  std::vector<std::int32_t> order(numbers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return numbers[static_cast<std::size_t>(a)] < numbers[static_cast<std::size_t>(b)];
  });
  std::stable_partition(order.begin(), order.end(),
                        [&](std::int32_t cell) { return first[static_cast<std::size_t>(cell)]; });
  return order;
}

// How many cells each step decides: the published arccos or cosine mask ratio.
std::vector<std::int64_t> group_sizes(std::int64_t cells, std::int64_t steps, bool cosine) {
  std::vector<std::int64_t> sizes;
  std::int64_t done = 0;
  for (std::int64_t step = 1; step <= steps; step++) {
    const double share = static_cast<double>(step) / static_cast<double>(steps);
    const double left = cosine ? std::cos(PI / 2.0 * share) : std::acos(share) / (PI * 0.5);
    const auto masked = static_cast<std::int64_t>(static_cast<double>(cells) * left);
    const std::int64_t stay = std::max<std::int64_t>(1, std::min(cells - done - 1, masked));
    sizes.push_back(step == steps ? cells - done : cells - done - stay);
    done += sizes.back();
  }
  return sizes;
}

} // namespace

void arpg(Schedule& schedule, const ArpgOptions& options) {
  const std::int64_t cells = schedule.cells();
  if (options.steps < 1 || options.steps > cells) {
    throw Error(Code::schedule, text(options.steps, " steps do not fit a grid of ", schedule.rows, "x",
                                     schedule.columns, ": use arpg:1 to arpg:", cells));
  }
  std::vector<bool> kept(static_cast<std::size_t>(cells));
  for (const std::int32_t cell : schedule.kept) {
    if (cell < 0 || cell >= cells) {
      throw Error(Code::schedule, text("keeps cell ", cell, " outside the grid"));
    }
    kept[static_cast<std::size_t>(cell)] = true;
  }
  const std::vector<std::int32_t> sequence = sequence_of(cells, options.order, kept);
  const auto given = static_cast<std::int32_t>(std::count(kept.begin(), kept.end(), true));
  if (given == cells) {
    throw Error(Code::schedule, text("all ", cells, " cells are kept: leave at least one to decide"));
  }
  const auto known = [&](std::int32_t place) {
    const std::int32_t cell = sequence[static_cast<std::size_t>(place)];
    return Input{Source::cell, cell, 1 + cell, options.causal ? 1 + place : std::min(1 + place, given), 0};
  };
  schedule.queries = true;
  std::vector<Input> inputs = {CLASS_TOKEN};
  for (std::int32_t place = 0; place < given; place++) {
    inputs.push_back(known(place));
  }
  std::int32_t done = given;
  const std::int64_t left = cells - given;
  for (const std::int64_t size : group_sizes(left, (options.steps * left + cells - 1) / cells, options.cosine)) {
    Step step{std::move(inputs), {}, 0, {}, 1.0};
    inputs.clear();
    step.commit = static_cast<std::int32_t>(step.inputs.size());
    for (std::int32_t row = 0; row < size; row++, done++) {
      step.targets.push_back({row, sequence[static_cast<std::size_t>(done)]});
      inputs.push_back(known(done));
    }
    if (!options.constant) {
      step.guidance = static_cast<float>(static_cast<double>(done) / static_cast<double>(cells)); // as a file holds it
    }
    schedule.steps.push_back(std::move(step));
  }
}

} // namespace arforge
