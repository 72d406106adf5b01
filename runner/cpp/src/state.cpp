#include "state.h"

#include <algorithm>

namespace arforge {

State start_of(const Plan& plan, const Model& model, const std::int64_t* classes, const Extent& extent,
               const std::vector<std::int64_t>& tokens) {
  State state{{}, plan.cells + plan.conditions + plan.specials, extent.images, extent.rows, {}};
  state.known.resize(static_cast<std::size_t>(state.rows * state.columns));
  for (std::int64_t row = 0; row < state.rows; row++) {
    std::int64_t* known = state.known.data() + row * state.columns;
    for (const std::int32_t cell : plan.kept) {
      known[cell] = tokens[static_cast<std::size_t>(row % state.images * plan.cells + cell)];
    }
    if (plan.conditions > 0) {
      known[plan.cells] = row < state.images ? model.first_class + classes[row] : model.null_class;
    }
    for (std::int64_t index = 0; index < plan.specials; index++) {
      known[plan.cells + plan.conditions + index] = model.first_special + index;
    }
  }
  state.visibility.start(extent.slots);
  return state;
}

void fill(const PlannedStep& step, std::int64_t zero_slots, State& state, StepBuffers& buffers) {
  const std::int64_t width = step.shape.width;
  for (std::int64_t row = 0; row < state.rows; row++) {
    const std::int64_t* known = state.known.data() + row * state.columns;
    std::int64_t* tokens = buffers.tokens.data() + row * width;
    for (std::int64_t input = 0; input < width; input++) {
      tokens[input] = known[step.columns[static_cast<std::size_t>(input)]];
    }
    std::copy(step.positions.begin(), step.positions.end(), buffers.positions.data() + row * width);
    std::copy(step.query_positions.begin(), step.query_positions.end(),
              buffers.query_positions.data() + row * step.shape.queries);
    buffers.write_index[static_cast<std::size_t>(row)] = step.write_index;
  }
  std::uint8_t* mask = buffers.mask.data();
  const auto one = static_cast<std::int64_t>(buffers.mask.size()) / state.rows; // of a row
  state.visibility.enter(step, zero_slots, mask);
  for (std::int64_t row = 1; row < state.rows; row++) {
    std::copy_n(mask, one, mask + row * one);
  }
}

std::int64_t spoilt_image(const PlannedStep& step, const StepBuffers& buffers, const Model& model,
                          std::int64_t images) {
  const auto outputs = static_cast<std::int64_t>(buffers.next_tokens.size()) / images;
  for (std::int64_t image = 0; image < images; image++) {
    for (const std::int64_t row : step.target_rows) {
      const std::int64_t token = buffers.next_tokens[static_cast<std::size_t>(image * outputs + row)];
      if (token < 0 || token >= model.vocabulary) {
        return image;
      }
    }
  }
  return -1;
}

void store(const PlannedStep& step, const StepBuffers& buffers, State& state) {
  const auto outputs = static_cast<std::int64_t>(buffers.next_tokens.size()) / state.images;
  for (std::int64_t row = 0; row < state.rows; row++) {
    const std::int64_t* drawn = buffers.next_tokens.data() + row % state.images * outputs;
    std::int64_t* known = state.known.data() + row * state.columns;
    for (std::size_t target = 0; target < step.target_cells.size(); target++) {
      known[step.target_cells[target]] = drawn[step.target_rows[target]];
    }
  }
}

} // namespace arforge
