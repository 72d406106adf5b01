#include "loop_graph.h"

#include <numeric>
#include <utility>

#include "table_graph.h"

namespace arforge {

const Line* line_of(const Plan& plan) {
  return plan.line && plan.line->all_before && plan.kept.empty() && plan.conditions == 1 ? &*plan.line : nullptr;
}

Contract loop_contract(const ModelFacts& model, const LoopSizes& sizes, const std::string& graph) {
  const std::int64_t cells = model.cells();
  Tensor drawing{"uniforms", Type::float32, {"images", "width"}};
  Tensor drawings{"cell_uniforms", Type::float32, {"images", cells}};
  if (graph == "step-noise") {
    drawing = {"noise", Type::float32, {"images", "width", model.vocabulary}};
    drawings = {"cell_noise", Type::float32, {"images", cells, model.vocabulary}};
  }
  const Dimension masks = sizes.one_mask ? Dimension(1) : Dimension("rows");
  Contract made;
  const auto take = [&](Tensor tensor) { made.inputs.push_back(std::move(tensor)); };
  const auto give = [&](Tensor tensor) { made.outputs.push_back(std::move(tensor)); };
  const auto keep = [&](const char* name, std::vector<Dimension> shape) {
    take({name, Type::int64, shape});
    give({next_name(name), Type::int64, std::move(shape)});
  };
  keep("known", {"images", cells}); // tokens, decided or drafted
  keep("place", {"images"});        // inputs of the line in the cache that are right
  keep("passes", {"images"});       // calls until the image was done
  keep("fault", {"images"});        // what came where a token should; 0: nothing. All stop then
  take({"drawn", Type::int64, {"images", "fed"}});
  for (const char* const name : {"line_tokens", "line_positions", "line_sources", "line_targets"}) {
    take({name, Type::int64, {sizes.inputs}});
  }
  take({"line_reached", Type::int64, {sizes.inputs + 1}}); // cells that so many inputs decide
  take({"line_guidance", Type::float32, {"images", sizes.inputs}});
  take({"deciders", Type::int64, {cells}}); // the input that decides each cell
  take({"feeders", Type::int64, {cells}});  // the input that is its token; `inputs` where none is
  take(std::move(drawings));
  take({"first_tokens", Type::int64, {"rows"}}); // of the condition
  take({"first_slot", Type::int64, {1}});        // of the line
  take({"moved", Type::int64, {"rows"}});        // added to positions
  take({"offsets", Type::int64, {"width"}});     // 0, 1, 2, ...: a width as numbers, since shapes come from the host
  take({"fed", Type::int64, {1}});
  if (!sizes.own_mask) {
    take({"seen", Type::boolean, {masks, sizes.slots}}); // before the line's first slot
  }
  give({"tokens", Type::int64, {"rows", "width"}});
  give({"positions", Type::int64, {"rows", "width"}});
  give({"write_index", Type::int64, {"rows"}});
  if (!sizes.own_mask) {
    give({"mask", Type::boolean, {masks, 1, "width", sizes.slots}});
  }
  give(std::move(drawing));
  give({"guidance", Type::float32, {"images", "width"}});
  return made;
}

LineTables::LineTables(const Plan& plan, const Line& line) {
  numbers["line_positions"] = line.positions;
  numbers["line_sources"] = line.sources;
  numbers["line_targets"] = line.targets;
  numbers["deciders"] = line.deciders;
  numbers["first_slot"] = {plan.steps.front().write_index};
  std::vector<std::int64_t>& reached = numbers["line_reached"];
  reached.push_back(0);
  for (const std::int64_t target : line.targets) {
    reached.push_back(reached.back() + (target >= 0 ? 1 : 0));
  }
  std::vector<std::int64_t>& feeders = numbers["feeders"];
  feeders.assign(static_cast<std::size_t>(plan.cells), line.inputs());
  for (std::int64_t input = 0; input < line.inputs(); input++) {
    if (const std::int64_t source = line.sources[static_cast<std::size_t>(input)]; source >= 0) {
      feeders[static_cast<std::size_t>(source)] = input;
    }
  }
  std::vector<std::int64_t>& offsets = numbers["offsets"];
  offsets.resize(static_cast<std::size_t>(plan.jacobi_width));
  std::iota(offsets.begin(), offsets.end(), 0);
}

} // namespace arforge
