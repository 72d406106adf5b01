#include "plan.h"

#include <algorithm>

#include "arforge.hpp"
#include "conditions.h"
#include "text.h"

namespace arforge {
namespace {

// The least of an engine's widths (none: any) that is at least `width`.
std::int64_t engine_width(std::int64_t width, const std::vector<std::int64_t>& widths) {
  std::int64_t best = widths.empty() ? width : 0;
  for (const std::int64_t known : widths) {
    best = known >= width && (best == 0 || known < best) ? known : best;
  }
  if (best == 0) {
    throw Error(Code::engine,
                text("the schedule decodes ", width, " tokens in a step, the engine was built for widths ",
                     listed(widths), ": rebuild it with `arforge build --width ", width, "`"));
  }
  return best;
}

// The list with its last entry repeated up to `width`.
template <class T>
void pad(std::vector<T>& list, std::int64_t width) {
  list.resize(static_cast<std::size_t>(width), list.back());
}

PlannedStep planned(const Step& step, const Plan& plan, bool queries, const std::vector<std::int64_t>& widths) {
  PlannedStep result{};
  const std::int64_t first[] = {0, plan.cells, plan.cells + plan.conditions}; // columns of each source
  for (const Input& given : step.inputs) {
    result.columns.push_back(first[static_cast<std::size_t>(given.source)] + given.value);
    result.positions.push_back(given.position);
    result.ranks.push_back(given.rank);
    result.holes.push_back(given.holes);
  }
  result.inputs = static_cast<std::int64_t>(step.inputs.size());
  result.shape.width = engine_width(result.inputs, widths);
  pad(result.columns, result.shape.width);
  pad(result.positions, result.shape.width);
  pad(result.ranks, result.shape.width);
  pad(result.holes, result.shape.width);
  for (const auto& [row, cell] : step.targets) {
    result.target_rows.push_back(row);
    result.target_cells.push_back(cell);
    if (queries) {
      result.query_positions.push_back(1 + cell);
    }
  }
  if (queries) { // a step that decides nothing asks for one cell all the same, and drops it
    result.query_positions.resize(std::max<std::size_t>(result.query_positions.size(), 1));
    result.shape.queries = engine_width(static_cast<std::int64_t>(result.query_positions.size()), widths);
    pad(result.query_positions, result.shape.queries);
  }
  for (const std::int32_t slot : step.retire) {
    result.retire.push_back(slot + static_cast<std::int32_t>(plan.prompt_slots));
  }
  result.commit = step.commit;
  result.guidance = step.guidance;
  return result;
}

// The mask of the prompt slots, which each row has of its own.
void show_prompt(const PlannedStep& step, const Plan& plan, std::int64_t before, std::uint8_t* mask) {
  for (std::int64_t input = 0; input < step.shape.width; input++) {
    std::uint8_t* const slots = mask + input * step.shape.slots + plan.zero_slots;
    std::fill_n(slots, plan.prompt_slots - before, std::uint8_t{0});
    std::fill_n(slots + plan.prompt_slots - before, before, std::uint8_t{1});
  }
}

// Slots to bind for those in use: few sizes, since growing moves all of them, and little that is read in vain.
std::int64_t rounded_slots(std::int64_t needed, std::int64_t growth) {
  constexpr std::int64_t SIZES = 16; // between a power of two and the next
  std::int64_t unit = growth;
  while (unit * 2 * SIZES < needed) {
    unit *= 2;
  }
  return (needed + unit - 1) / unit * unit;
}

} // namespace

Plan make_plan(Schedule schedule, const std::vector<std::int64_t>& widths, std::int64_t growth,
               std::int64_t prompt_slots) {
  if (!widths.empty()) {
    schedule = narrowed(std::move(schedule), *std::max_element(widths.begin(), widths.end()));
  }
  Plan plan{{},
            {},
            0,
            schedule.zero_slots,
            prompt_slots,
            schedule.cells(),
            schedule.conditions,
            specials_of(schedule),
            schedule.kept};
  std::int64_t write_index = schedule.zero_slots + prompt_slots;
  for (const Step& step : schedule.steps) {
    plan.steps.push_back(planned(step, plan, schedule.queries, widths));
    plan.steps.back().write_index = write_index;
    plan.slots = std::max(plan.slots, write_index + plan.steps.back().shape.width);
    write_index += step.commit;
  }
  std::int64_t live = growth == 0 ? plan.slots : 0;
  for (PlannedStep& step : plan.steps) {
    const std::int64_t needed = step.write_index + step.shape.width;
    if (needed > live) {
      live = std::min(plan.slots, rounded_slots(needed, growth));
    }
    step.shape.slots = live;
    if (std::find(plan.shapes.begin(), plan.shapes.end(), step.shape) == plan.shapes.end()) {
      plan.shapes.push_back(step.shape);
    }
  }
  return plan;
}

State start_of(const Plan& plan, const ModelFacts& model, std::int64_t images, const std::vector<Prompt>& prompts,
               const std::vector<std::int64_t>& tokens) {
  const auto rows = static_cast<std::int64_t>(prompts.size());
  State state{{}, plan.cells + plan.conditions + plan.specials, images, rows, {}, {}, {}};
  state.known.resize(static_cast<std::size_t>(state.rows * state.columns));
  for (std::int64_t row = 0; row < state.rows; row++) {
    const Prompt& prompt = prompts[static_cast<std::size_t>(row)];
    state.before.push_back(prompt.before());
    state.places.push_back(model.positions == "sequence" ? prompt.before() : 0);
    std::int64_t* known = state.known.data() + row * state.columns;
    for (const std::int32_t cell : plan.kept) {
      known[cell] = tokens[static_cast<std::size_t>(row % state.images * plan.cells + cell)];
    }
    if (plan.conditions > 0) {
      known[plan.cells] = prompt.token;
    }
    for (std::int64_t index = 0; index < plan.specials; index++) {
      known[plan.cells + plan.conditions + index] = model.specials[static_cast<std::size_t>(index)];
    }
  }
  state.visibility.start(plan.slots);
  return state;
}

void fill(const PlannedStep& step, const Plan& plan, State& state, StepBuffers& buffers) {
  const std::int64_t width = step.shape.width;
  for (std::int64_t row = 0; row < state.rows; row++) {
    const std::int64_t* known = state.known.data() + row * state.columns;
    std::int64_t* tokens = buffers.tokens.data() + row * width;
    for (std::int64_t input = 0; input < width; input++) {
      tokens[input] = known[step.columns[static_cast<std::size_t>(input)]];
    }
    const std::int64_t first = state.places[static_cast<std::size_t>(row)];
    std::transform(step.positions.begin(), step.positions.end(), buffers.positions.data() + row * width,
                   [first](std::int64_t position) { return first + position; });
    std::copy(step.query_positions.begin(), step.query_positions.end(),
              buffers.query_positions.data() + row * step.shape.queries);
    buffers.write_index[static_cast<std::size_t>(row)] = step.write_index;
  }
  std::uint8_t* mask = buffers.mask.data();
  const auto one = static_cast<std::int64_t>(buffers.mask.size()) / state.rows; // of a row
  state.visibility.enter(step, step.shape.slots, plan.zero_slots, mask);
  for (std::int64_t row = 1; row < state.rows; row++) {
    std::copy_n(mask, one, mask + row * one);
  }
  for (std::int64_t row = 0; row < state.rows && plan.prompt_slots > 0; row++) {
    show_prompt(step, plan, state.before[static_cast<std::size_t>(row)], mask + row * one);
  }
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
