// The step as TensorRT is given it.
#include <algorithm>
#include <utility>

#include "step_graph.h"

namespace arforge {
namespace {

constexpr const char* ROW_HEADS = "row_heads";   // rows * kv_heads
constexpr const char* ROW_VALUES = "row_values"; // and that many times head_size

// The same step with caches in the order slots, rows, heads, head size, each with a view of three dimensions.
Contract with_views(const ModelFacts& model, Contract plain) {
  for (const std::string& name : cache_names(model.caches)) {
    const auto turn = [&](std::vector<Tensor>& tensors, const std::string& one) {
      Tensor& tensor =
          *std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& other) { return other.name == one; });
      tensor.shape = {1, 1, "slots", ROW_VALUES};
      return tensor.type;
    };
    const Type type = turn(plain.inputs, name);
    turn(plain.outputs, written_name(name));
    plain.inputs.push_back({view_name(name), type, {"slots", ROW_HEADS, model.head_size}});
  }
  return plain;
}

} // namespace

Contract lowered_contract(const ModelFacts& model, const std::string& graph, Type cache, bool filters, bool own_mask,
                          bool views) {
  Contract contract = contract_of(model, graph, cache);
  if (views) {
    contract = with_views(model, std::move(contract));
  }
  const auto left_out = [&](const Tensor& tensor) {
    return (!filters && (tensor.name == "top_k" || tensor.name == "top_p")) || (own_mask && tensor.name == "mask");
  };
  std::vector<Tensor>& inputs = contract.inputs;
  inputs.erase(std::remove_if(inputs.begin(), inputs.end(), left_out), inputs.end());
  const auto mask =
      std::find_if(inputs.begin(), inputs.end(), [](const Tensor& tensor) { return tensor.name == "mask"; });
  if (mask != inputs.end() && !conditioned(model)) {
    mask->shape.front() = 1;
  }
  return contract;
}

Sizes row_sizes(const ModelFacts& model, std::int64_t images) {
  const std::int64_t rows = guided_rows(images, true);
  const std::int64_t heads = rows * model.kv_heads;
  return {{"rows", rows}, {ROW_HEADS, heads}, {ROW_VALUES, heads * model.head_size}};
}

} // namespace arforge
