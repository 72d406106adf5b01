#include "plan.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "arforge.hpp"
#include "conditions.h"
#include "text.h"

namespace arforge {
namespace {

// The list with its last entry repeated up to `width`.
template <class T>
void pad(std::vector<T>& list, std::int64_t width) {
  list.resize(static_cast<std::size_t>(width), list.back());
}

// The line of a schedule that `checked` finds to be one, of whose steps these are the planned ones.
Line make_line(const Schedule& schedule, const Plan& plan) {
  Line line{};
  line.all_before = sees_all_before(schedule);
  line.deciders.resize(static_cast<std::size_t>(plan.cells));
  for (std::size_t index = 0; index < schedule.steps.size(); index++) {
    const Step& step = schedule.steps[index];
    for (const std::int32_t slot : step.retire) {
      line.until[static_cast<std::size_t>(slot - schedule.zero_slots)] = line.inputs();
    }
    for (std::size_t input = 0; input < step.inputs.size(); input++) {
      const Input& given = step.inputs[input];
      line.columns.push_back(plan.steps[index].columns[input]);
      line.positions.push_back(given.position);
      line.sources.push_back(given.source == Source::cell ? given.value : -1);
      line.targets.push_back(-1);
      line.guidance.push_back(step.guidance);
      line.ranks.push_back(given.rank);
      line.holes.push_back(given.holes);
      line.until.push_back(std::numeric_limits<std::int64_t>::max());
      line.steps.push_back(static_cast<std::int64_t>(index));
    }
    for (const auto& [row, cell] : step.targets) {
      const std::size_t place = line.targets.size() - step.inputs.size() + static_cast<std::size_t>(row);
      line.targets[place] = cell;
      line.deciders[static_cast<std::size_t>(cell)] = static_cast<std::int64_t>(place);
    }
  }
  line.steps.push_back(static_cast<std::int64_t>(schedule.steps.size()));
  return line;
}

void enter(const Shape& shape, std::vector<Shape>& shapes) {
  if (std::find(shapes.begin(), shapes.end(), shape) == shapes.end()) {
    shapes.push_back(shape);
  }
}

// Gives every step the slots of its call.
void shape_steps(Plan& plan) {
  std::int64_t live = 0; // never less than before
  for (PlannedStep& step : plan.steps) {
    const std::int64_t needed = std::max(step.write_index + step.shape.width, step.shape.queries);
    live = needed > live ? plan.live(needed) : live;
    step.shape.slots = live;
    enter(step.shape, plan.shapes);
  }
}

// Makes a plan run ahead: calls of two widths, with slots wherever images can be.
void plan_ahead(Plan& plan, const Schedule& schedule) {
  plan.line = make_line(schedule, plan);
  plan.first_width = engine_width(1, plan.widths);
  plan.jacobi_width = engine_width(plan.jacobi, plan.widths);
  const std::int64_t begin = plan.steps.front().write_index;
  plan.slots = begin + plan.line->inputs() + plan.jacobi_width;
  plan.shapes = {{plan.first_width, 0, plan.live(begin + plan.first_width)}};
  for (std::int64_t live = 0; live < plan.slots;) {
    live = plan.live(std::max(begin + 1 + plan.jacobi_width, live + 1));
    enter({plan.jacobi_width, 0, live}, plan.shapes);
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

// Makes a plan of rows that start by themselves: calls of any width, with slots that come as they are needed.
void plan_rows(Plan& plan, const Schedule& schedule) {
  std::size_t widest = 0;
  for (const Step& step : schedule.steps) {
    widest = std::max(widest, step.inputs.size());
  }
  // at most a stand-in or an end of each row, beside the cells and the condition
  const std::int64_t begin = plan.steps.front().write_index;
  plan.slots = begin + plan.cells + plan.down + engine_width(static_cast<std::int64_t>(widest), plan.widths);
  const std::int64_t first = engine_width(1, plan.widths);
  plan.shapes = {{first, 0, plan.live(begin + first)}};
  for (std::size_t width = 1; width <= widest; width++) {
    enter({engine_width(static_cast<std::int64_t>(width), plan.widths), 0, plan.slots}, plan.shapes);
  }
}

} // namespace

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

void plan_step(const Step& step, const Plan& plan, bool queries, std::int64_t width, PlannedStep& planned) {
  planned.columns.clear();
  planned.positions.clear();
  planned.ranks.clear();
  planned.holes.clear();
  planned.target_rows.clear();
  planned.target_cells.clear();
  planned.query_positions.clear();
  planned.retire.clear();
  const std::int64_t first[] = {0, plan.cells, plan.cells + plan.conditions}; // columns of each source
  for (const Input& given : step.inputs) {
    planned.columns.push_back(first[static_cast<std::size_t>(given.source)] + given.value);
    planned.positions.push_back(given.position);
    planned.ranks.push_back(given.rank);
    planned.holes.push_back(given.holes);
  }
  planned.inputs = static_cast<std::int64_t>(step.inputs.size());
  planned.shape.width = engine_width(width, plan.widths);
  pad(planned.columns, planned.shape.width);
  pad(planned.positions, planned.shape.width);
  pad(planned.ranks, planned.shape.width);
  pad(planned.holes, planned.shape.width);
  for (const auto& [row, cell] : step.targets) {
    planned.target_rows.push_back(row);
    planned.target_cells.push_back(cell);
    if (queries) {
      planned.query_positions.push_back(1 + cell);
    }
  }
  if (queries) { // a step that decides nothing asks for one cell all the same, and drops it
    planned.query_positions.resize(std::max<std::size_t>(planned.query_positions.size(), 1));
    planned.shape.queries = engine_width(static_cast<std::int64_t>(planned.query_positions.size()), plan.widths);
    pad(planned.query_positions, planned.shape.queries);
  }
  planned.retire.assign(step.retire.begin(), step.retire.end());
  planned.commit = step.commit;
  planned.guidance = step.guidance;
}

std::int64_t Plan::lockstep_width() const {
  std::int64_t widest = 0;
  for (const Shape& shape : shapes) {
    widest = own_pace() ? 0 : std::max(widest, shape.width);
  }
  return widest;
}

std::int64_t Plan::live(std::int64_t needed) const {
  return growth == 0 ? slots : std::min(slots, rounded_slots(needed, growth));
}

std::int64_t Plan::length() const { return rules ? cells : static_cast<std::int64_t>(steps.size()); }

std::int64_t Plan::calls() const { return line ? line->inputs() : length(); }

std::vector<bool> Plan::decided(std::int64_t done, std::int64_t images) const {
  std::vector<bool> known(static_cast<std::size_t>(images * cells));
  for (auto own = known.begin(); own != known.end(); own += cells) {
    const auto know = [&](std::int64_t cell) { own[cell] = true; };
    std::for_each(kept.begin(), kept.end(), know);
    for (auto step = steps.begin(); step != steps.begin() + done; step++) {
      std::for_each(step->target_cells.begin(), step->target_cells.end(), know);
    }
  }
  return known;
}

Plan make_plan(Schedule schedule, const std::vector<std::int64_t>& widths, std::int64_t growth,
               std::int64_t prompt_slots, std::int64_t exact_width) {
  if (!widths.empty() && !schedule.rules) { // those of images are as wide as they are
    schedule = narrowed(std::move(schedule), *std::max_element(widths.begin(), widths.end()));
  }
  static std::atomic<std::uint64_t> plans{0};
  Plan plan{{},
            {},
            0,
            schedule.zero_slots,
            prompt_slots,
            schedule.cells(),
            schedule.conditions,
            specials_of(schedule),
            schedule.rows,
            schedule.columns,
            schedule.kept,
            growth,
            {},
            exact_width == 0 ? schedule.jacobi : std::min(schedule.jacobi, exact_width),
            0,
            0,
            schedule.rules,
            widths,
            ++plans};
  std::int64_t write_index = schedule.zero_slots + prompt_slots;
  for (const Step& step : schedule.steps) {
    plan_step(step, plan, schedule.queries, static_cast<std::int64_t>(step.inputs.size()), plan.steps.emplace_back());
    plan.steps.back().write_index = write_index;
    for (std::int32_t& slot : plan.steps.back().retire) {
      slot += static_cast<std::int32_t>(prompt_slots);
    }
    const Shape& shape = plan.steps.back().shape; // attention may take as many slots as queries
    plan.slots = std::max({plan.slots, write_index + shape.width, shape.queries});
    write_index += step.commit;
  }
  if (plan.jacobi > 0) {
    plan_ahead(plan, schedule);
  } else if (plan.rules) {
    plan_rows(plan, schedule);
  } else {
    shape_steps(plan);
  }
  return plan;
}

std::int64_t images_together(std::int64_t asked, const std::vector<const Plan*>& plans, const EngineFacts& able) {
  const bool own_paces = std::any_of(plans.begin(), plans.end(), [](const Plan* plan) { return plan->own_pace(); });
  if (able.one_mask && own_paces) { // images that are at other steps see other slots
    return 1;
  }
  return able.largest_batch == 0 ? asked : std::min(asked, able.largest_batch);
}

State start_of(const Plan& plan, const ModelFacts& model, std::int64_t images, const std::vector<Prompt>& prompts,
               const std::vector<std::int64_t>& tokens) {
  const auto rows = static_cast<std::int64_t>(prompts.size());
  State state{{}, plan.cells + plan.conditions + plan.specials, images, rows, {}, {}};
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
  return state;
}

} // namespace arforge
