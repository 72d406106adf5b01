#include "step_graph.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "arforge.hpp"
#include "text.h"

namespace arforge {
namespace {

std::vector<Tensor> caches(const ModelFacts& model, Type cache, bool written) {
  std::vector<Tensor> tensors;
  for (const std::string& name : cache_names(model.caches)) {
    tensors.push_back({written ? written_name(name) : name, cache, {"rows", model.kv_heads, "slots", model.head_size}});
  }
  return tensors;
}

void append(std::vector<Tensor>& tensors, std::vector<Tensor> more) {
  tensors.insert(tensors.end(), more.begin(), more.end());
}

// One decoding step: the decoder over its caches, and the sampler.
Contract step(const ModelFacts& model, const std::string& graph, Type cache) {
  const char* const outputs = model.queries ? "queries" : "width";
  Contract contract{{{"tokens", Type::int64, {"rows", "width"}},
                     {"positions", Type::int64, {"rows", "width"}},
                     {"write_index", Type::int64, {"rows"}},
                     {"mask", Type::boolean, {"rows", 1, "width", "slots"}}},
                    {{"next_tokens", Type::int64, {"images", outputs}}}};
  if (model.queries) {
    contract.inputs.push_back({"query_positions", Type::int64, {"rows", outputs}});
  }
  if (conditioned(model)) {
    contract.inputs.push_back({"condition", Type::float32, {"rows", "condition", model.dim}});
  }
  if (graph == "step-noise") {
    contract.inputs.push_back({"noise", Type::float32, {"images", outputs, model.vocabulary}});
  } else {
    contract.inputs.push_back({"uniforms", Type::float32, {"images", outputs}});
  }
  append(contract.inputs, {{"guidance", Type::float32, {"images", outputs}},
                           {"temperature", Type::float32, {"images"}},
                           {"top_k", Type::int64, {"images"}},
                           {"top_p", Type::float32, {"images"}}});
  if (graph == "step-logits") {
    contract.outputs.push_back({"logits", Type::float32, {"images", outputs, model.vocabulary}});
  }
  append(contract.inputs, caches(model, cache, false));
  append(contract.outputs, caches(model, cache, true));
  return contract;
}

Tensor features(const FeaturesCondition& condition) {
  return {"features", Type::float32, {"prompts", "length", condition.width}};
}

// From a prompt, features or ids, to the rows that a step reads; run once a request. Of features it also gives the rows
// that stand for no prompt of that length.
Contract condition(const ModelFacts& model) {
  const Tensor rows{"condition", Type::float32, {"prompts", "length", model.dim}};
  if (const FeaturesCondition* given = features_condition(model)) {
    return {{features(*given)}, {rows, {"unconditional", Type::float32, {"length", model.dim}}}};
  }
  if (std::holds_alternative<IdsCondition>(model.condition)) {
    return {{{"ids", Type::int64, {"prompts", "length"}}}, {rows}};
  }
  throw Error(Code::bundle, "a model of classes has no graph 'condition'");
}

// The text encoder: from ids to the features of a prompt.
Contract text_encoder(const ModelFacts& model) {
  const FeaturesCondition* given = features_condition(model);
  if (given == nullptr) {
    throw Error(Code::bundle, text("a model whose condition is ", kind_of(model.condition), " has no graph 'text'"));
  }
  return {{{"ids", Type::int64, {"prompts", "length"}}, {"mask", Type::int64, {"prompts", "length"}}},
          {features(*given)}};
}

Contract decoder() {
  return {{{"tokens", Type::int64, {"images", "rows", "columns"}}},
          {{"images", Type::uint8, {"images", "height", "width", 3}}}};
}

Contract encoder() {
  const Contract back = decoder();
  return {back.outputs, back.inputs};
}

template <class Sides>
std::size_t product(Sides side, Sides end) {
  const auto most = static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max());
  std::size_t entries = 1;
  for (; side != end; ++side) {
    if (*side > 0 && entries > most / static_cast<std::size_t>(*side)) {
      throw std::bad_alloc();
    }
    entries *= static_cast<std::size_t>(*side);
  }
  return entries;
}

} // namespace

bool conditioned(const ModelFacts& model) { return !std::holds_alternative<ClassCondition>(model.condition); }

Contract contract_of(const ModelFacts& model, const std::string& graph, Type cache) {
  if (graph == "step" || graph == "step-logits" || graph == "step-noise") {
    return step(model, graph, cache);
  }
  if (graph == "condition") {
    return condition(model);
  }
  if (graph == "text") {
    return text_encoder(model);
  }
  if (graph == "decoder") {
    return decoder();
  }
  if (graph == "encoder") {
    return encoder();
  }
  throw Error(Code::bundle, text("unknown graph '", graph,
                                 "': use step, step-logits, step-noise, condition, text, decoder, encoder"));
}

namespace {

template <typename Change>
void each_cache(Contract& contract, const std::map<std::string, Type>& types, Change change) {
  for (std::vector<Tensor>* const side : {&contract.inputs, &contract.outputs}) {
    for (Tensor& tensor : *side) {
      for (const auto& [cache, type] : types) {
        if (tensor.name == cache || tensor.name == written_name(cache)) {
          change(tensor, type);
        }
      }
    }
  }
}

} // namespace

Contract typed(const Contract& plain, const std::map<std::string, Type>& types) {
  Contract made = plain;
  each_cache(made, types, [](Tensor& tensor, Type type) { tensor.type = type; });
  return made;
}

Contract folded(const Contract& plain, const std::map<std::string, Type>& types,
                const std::map<std::string, std::vector<std::string>>& again) {
  Contract made = typed(plain, types);
  each_cache(made, types, [](Tensor& tensor, Type /*type*/) {
    tensor.shape[0] = 1;
    tensor.shape[1] = "heads";
  });
  for (const auto& [cache, names] : again) {
    for (const std::string& name : names) {
      Tensor tensor = *find_tensor(made.outputs, written_name(cache));
      tensor.name = name;
      made.outputs.push_back(std::move(tensor));
    }
  }
  return made;
}

Type cache_type(const std::string& precision) {
  return precision == "bf16" ? Type::bfloat16 : precision == "fp16" ? Type::float16 : Type::float32;
}

std::vector<std::string> cache_names(std::int64_t caches) {
  std::vector<std::string> names;
  for (std::int64_t index = 0; index < caches; index++) {
    names.push_back(text("key_cache_", index));
    names.push_back(text("value_cache_", index));
  }
  return names;
}

std::string written_name(const std::string& cache) { return "new_" + cache; }

std::string update_name(const std::string& cache) {
  std::string name = cache;
  return name.replace(name.find("_cache_"), sizeof "_cache_" - 1, "_update_");
}

std::string view_name(const std::string& cache) { return "view_" + cache; }

std::int64_t guided_rows(std::int64_t images, bool guided) { return guided ? 2 * images : images; }

const char* name_of(Type type) {
  switch (type) {
  case Type::boolean:
    return "bool";
  case Type::int8:
    return "int8";
  case Type::uint8:
    return "uint8";
  case Type::int64:
    return "int64";
  case Type::float32:
    return "float32";
  case Type::float16:
    return "float16";
  case Type::bfloat16:
    return "bfloat16";
  }
  return "";
}

std::size_t bytes_of(Type type) {
  switch (type) {
  case Type::int64:
    return 8;
  case Type::float32:
    return 4;
  case Type::float16:
  case Type::bfloat16:
    return 2;
  default:
    return 1;
  }
}

std::vector<std::int64_t> sizes_of(const Tensor& tensor, const Sizes& sizes) {
  std::vector<std::int64_t> found;
  for (const Dimension& dimension : tensor.shape) {
    const auto known = sizes.find(dimension.word);
    found.push_back(dimension.word.empty() ? dimension.size : known == sizes.end() ? -1 : known->second);
  }
  return found;
}

std::size_t entries_of(const std::vector<std::int64_t>& shape) { return product(shape.begin(), shape.end()); }

std::size_t entries_of(std::initializer_list<std::int64_t> shape) { return product(shape.begin(), shape.end()); }

Sizes step_sizes(const Extent& extent, const Shape& shape) {
  return {{"images", extent.images}, {"rows", extent.rows},      {"condition", extent.condition},
          {"width", shape.width},    {"queries", shape.queries}, {"slots", shape.slots}};
}

StepBuffers make_buffers(const Contract& contract, const Sizes& sizes) {
  StepBuffers buffers;
  buffers.each([&](const char* name, auto& buffer) {
    const Tensor* input = find_tensor(contract.inputs, name);
    const Tensor* tensor = input != nullptr ? input : find_tensor(contract.outputs, name);
    if (tensor != nullptr) {
      buffer.resize(entries_of(sizes_of(*tensor, sizes)));
    }
  });
  return buffers;
}

const Tensor* find_tensor(const std::vector<Tensor>& tensors, const std::string& name) {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

} // namespace arforge
