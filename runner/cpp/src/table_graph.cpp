#include "table_graph.h"

#include <algorithm>

#include "schedules/visibility.h"

namespace arforge {
namespace {

constexpr const char* NEXT_PREFIX = "next_";

std::int64_t outputs_of(const Shape& shape) { return shape.queries > 0 ? shape.queries : shape.width; }

void append(std::vector<std::int64_t>& list, const std::vector<std::int64_t>& more) {
  list.insert(list.end(), more.begin(), more.end());
}

// What stays from call to call, and is there twice.
std::vector<Tensor> state_of(const TableSizes& sizes) {
  return {{"known", Type::int64, {"rows", sizes.columns}},
          {"call", Type::int64, {1}},               // the one that has run; -1 before the first
          {"fault", Type::int64, {"images"}},       // what came first where a token should; 0: nothing
          {"fault_call", Type::int64, {"images"}}}; // in that call
}

// What one plan has, of all batches.
std::vector<Tensor> tables_of(const TableSizes& sizes, std::int64_t slots, bool queries, bool own_mask) {
  std::vector<Tensor> found = {{"last_call", Type::int64, {1}},
                               {"call_slots", Type::int64, {sizes.calls}},     // that a call writes from
                               {"call_inputs", Type::int64, {sizes.calls}},    // the first of each call
                               {"call_outputs", Type::int64, {sizes.calls}},   // likewise
                               {"call_drawn", Type::int64, {sizes.calls}},     // how many outputs
                               {"decided_by", Type::int64, {sizes.columns}},   // the call; `NO_CALL` where none does
                               {"decided_at", Type::int64, {sizes.columns}},   // its output
                               {"input_columns", Type::int64, {sizes.inputs}}, // of `known` that hold their tokens
                               {"input_positions", Type::int64, {sizes.inputs}}};
  if (!own_mask) {
    found.push_back({"input_sees", Type::boolean, {sizes.inputs, slots}});
  }
  found.push_back({"output_cells", Type::int64, {sizes.outputs}}); // that outputs decide; any where they decide none
  if (queries) {
    found.push_back({"output_asked", Type::int64, {sizes.outputs}}); // positions
  }
  return found;
}

} // namespace

TableSizes TableSizes::of(const Plan& plan) {
  TableSizes found{static_cast<std::int64_t>(plan.steps.size()), 0, 0, 0, plan.cells + plan.conditions + plan.specials};
  for (const PlannedStep& step : plan.steps) {
    found.inputs += step.shape.width;
    found.outputs += outputs_of(step.shape);
    found.most = std::max(found.most, outputs_of(step.shape));
  }
  return found;
}

bool TableSizes::hold(const TableSizes& other) const {
  return calls >= other.calls && inputs >= other.inputs && outputs >= other.outputs && most >= other.most &&
         columns >= other.columns;
}

bool is_table(const Plan& plan) { return !plan.own_pace(); }

std::string next_name(const std::string& state) { return NEXT_PREFIX + state; }

bool is_next(const std::string& output) { return output.rfind(NEXT_PREFIX, 0) == 0; }

Contract table_contract(const ModelFacts& model, const TableSizes& sizes, const std::string& graph, std::int64_t slots,
                        bool one_mask, bool own_mask) {
  const char* const outputs = model.queries ? "queries" : "width";
  Tensor drawing{"uniforms", Type::float32, {"images", outputs}};
  Tensor drawings{"cell_uniforms", Type::float32, {"images", model.cells()}};
  if (graph == "step-noise") {
    drawing = {"noise", Type::float32, {"images", outputs, model.vocabulary}};
    drawings = {"cell_noise", Type::float32, {"images", model.cells(), model.vocabulary}};
  }
  Contract made;
  const auto take = [&](Tensor tensor) { made.inputs.push_back(std::move(tensor)); };
  const auto give = [&](Tensor tensor) { made.outputs.push_back(std::move(tensor)); };
  for (const Tensor& part : state_of(sizes)) {
    take(part);
    give({next_name(part.name), part.type, part.shape});
  }
  take({"drawn", Type::int64, {"drawn"}});
  for (Tensor& table : tables_of(sizes, slots, model.queries, own_mask)) {
    take(std::move(table));
  }
  take({"image_numbers", Type::int64, {"images"}}); // shapes as numbers, since TensorRT reads shapes on the host
  take({"row_zeros", Type::int64, {"rows"}});
  take({"width_numbers", Type::int64, {"width"}});
  if (model.queries) {
    take({"query_numbers", Type::int64, {"queries"}});
  }
  take({"call_guidance", Type::float32, {"images", sizes.calls}});
  take(std::move(drawings));
  take({"moved", Type::int64, {"rows"}}); // added to positions
  if (!one_mask && !own_mask) {
    take({"seen", Type::boolean, {"rows", slots}}); // of a row's prompt
  }
  give({"tokens", Type::int64, {"rows", "width"}});
  give({"positions", Type::int64, {"rows", "width"}});
  give({"write_index", Type::int64, {"rows"}});
  if (!own_mask) {
    give({"mask", Type::boolean, {one_mask ? Dimension(1) : Dimension("rows"), 1, "width", slots}});
  }
  if (model.queries) {
    give({"query_positions", Type::int64, {"rows", "queries"}});
  }
  give(std::move(drawing));
  give({"guidance", Type::float32, {"images", outputs}});
  return made;
}

PlanTables::PlanTables(const Plan& plan) {
  const TableSizes sizes = TableSizes::of(plan);
  const auto columns = static_cast<std::size_t>(sizes.columns);
  std::vector<std::int64_t>& decided_by = numbers["decided_by"];
  std::vector<std::int64_t>& decided_at = numbers["decided_at"];
  std::vector<std::int64_t>& cells = numbers["output_cells"];
  decided_by.assign(columns, NO_CALL);
  decided_at.assign(columns, 0);
  numbers["last_call"] = {sizes.calls - 1};
  input_sees.resize(entries_of({sizes.inputs, plan.slots}));
  Visibility visibility;
  visibility.start(plan.slots);
  std::int64_t inputs = 0;
  for (std::int64_t call = 0; call < sizes.calls; call++) {
    const PlannedStep& step = plan.steps[static_cast<std::size_t>(call)];
    const std::int64_t outputs = outputs_of(step.shape);
    const std::size_t first = cells.size();
    cells.resize(first + static_cast<std::size_t>(outputs));
    for (std::size_t target = 0; target < step.target_cells.size(); target++) {
      const auto cell = static_cast<std::size_t>(step.target_cells[target]);
      decided_by[cell] = call;
      decided_at[cell] = step.target_rows[target];
      cells[first + static_cast<std::size_t>(step.target_rows[target])] = step.target_cells[target];
    }
    numbers["call_slots"].push_back(step.write_index);
    numbers["call_inputs"].push_back(inputs);
    numbers["call_outputs"].push_back(static_cast<std::int64_t>(first));
    numbers["call_drawn"].push_back(outputs);
    append(numbers["input_columns"], step.columns);
    append(numbers["input_positions"], step.positions);
    append(numbers["output_asked"], step.query_positions);
    visibility.enter(step, plan.slots, plan.zero_slots, input_sees.data() + inputs * plan.slots);
    inputs += step.shape.width;
  }
}

} // namespace arforge
