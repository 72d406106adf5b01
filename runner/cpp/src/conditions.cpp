#include "conditions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string_view>

#include "text.h"

namespace arforge {
namespace {

constexpr std::int64_t GRANULE = 128; // of prompt slots; see `prompt_slots`

std::string_view bytes_of(const float* values, std::size_t count) {
  return {reinterpret_cast<const char*>(values), count * sizeof(float)};
}

std::size_t size_of(const Features& features) { return entries_of({features.length, features.width}); }

// A view of numbers that are only read.
template <class T>
Ort::Value tensor_of(const T* values, std::size_t size, const std::vector<std::int64_t>& shape) {
  const Ort::MemoryInfo host = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor<T>(host, const_cast<T*>(values), size, shape.data(), shape.size());
}

// The rows of a condition that a session gave.
std::shared_ptr<const std::vector<float>> rows_of(const Ort::Value& given, std::size_t size, const Bundle& bundle) {
  if (given.GetTensorTypeAndShapeInfo().GetElementCount() != size) {
    throw Error(Code::engine, text("the condition graph of ", bundle.root.string(),
                                   " gives other rows than the prompt has: export the bundle again"));
  }
  const auto* rows = given.GetTensorData<float>();
  return std::make_shared<const std::vector<float>>(rows, rows + size);
}

} // namespace

bool Prompt::operator==(const Prompt& other) const {
  if (token != other.token || length != other.length || together != other.together) {
    return false;
  }
  return rows == other.rows || bytes_of(rows->data(), rows->size()) == bytes_of(other.rows->data(), other.rows->size());
}

std::int64_t slots_before(const std::vector<Prompt>& prompts) {
  std::int64_t slots = 0;
  for (const Prompt& prompt : prompts) {
    slots += prompt.before();
  }
  return slots;
}

std::vector<Prompt> Conditions::rows(std::int64_t first, std::int64_t images, bool guided) const {
  std::vector<Prompt> found(conditional.begin() + first, conditional.begin() + first + images);
  if (guided) {
    found.insert(found.end(), unconditional.begin() + first, unconditional.begin() + first + images);
  }
  return found;
}

std::int64_t Conditions::longest() const {
  std::int64_t most = 0;
  for (const auto* prompts : {&conditional, &unconditional}) {
    for (const Prompt& prompt : *prompts) {
      most = std::max(most, prompt.before());
    }
  }
  return most;
}

std::int64_t prompt_slots(const ModelFacts& model, std::int64_t longest) {
  if (!conditioned(model)) {
    return 0;
  }
  const std::int64_t most = model.prompt_limit() - 1;
  const std::int64_t rounded = (longest + GRANULE - 1) / GRANULE * GRANULE;
  return most <= GRANULE ? std::min(most, rounded) : rounded;
}

Conditions class_conditions(const ModelFacts& model, const std::vector<std::int64_t>& classes) {
  const ClassCondition& condition = class_condition(model);
  Conditions found;
  for (const std::int64_t label : classes) {
    found.conditional.push_back({condition.first_class + label, nullptr});
    found.unconditional.push_back({condition.null_class, nullptr});
  }
  return found;
}

void check_features(const std::vector<Features>& features, const ModelFacts& model) {
  const FeaturesCondition* condition = features_condition(model);
  if (condition == nullptr) {
    throw Error(Code::request, text("this ", model.family, " model takes classes, not features"));
  }
  for (std::size_t index = 0; index < features.size(); index++) {
    const Features& one = features[index];
    const std::string name = text("the features: prompt ", index);
    if (one.width != condition->width) {
      throw Error(Code::request, text(name, " has rows of ", one.width, " numbers, the model reads ", condition->width,
                                      ": use the text encoder that the model was trained with"));
    }
    if (one.length < 1 || one.length > condition->slots) {
      throw Error(Code::request, text(name, " has ", one.length, " rows, the model has room for 1 to ",
                                      condition->slots, ": leave out padding with a mask, or shorten the prompt"));
    }
    if (one.values == nullptr) {
      throw Error(Code::request, text(name, " is NULL: expected an array of floats [tokens, ", condition->width, "]"));
    }
    if (!std::all_of(one.values, one.values + size_of(one), [](float value) { return std::isfinite(value); })) {
      throw Error(Code::request,
                  text(name, " holds numbers that are not finite in float32: encode it in float32 or bfloat16"));
    }
  }
}

ConditionGraph::ConditionGraph(const Bundle& bundle, const Options& options)
    : bundle_(bundle), options_(options), env_(open_environment()) {
  if (conditioned(bundle.model)) {
    contract_ = contract_of(bundle.model, "condition", Type::float32);
  }
}

// The outputs of the graph for one prompt of that length: its rows, and of features those of none.
std::vector<ConditionGraph::Rows> ConditionGraph::pass(const Ort::Value& prompt, std::int64_t length) {
  if (session_ == nullptr) { // fp32 is its only precision
    session_ =
        std::make_unique<Ort::Session>(open_session(env_, graph_path(bundle_, "condition", "fp32"), options_, true));
    check_session(*session_, contract_, text("the condition graph of ", bundle_.root.string()));
  }
  const char* const from = contract_.inputs.front().name.c_str();
  std::vector<const char*> into;
  into.reserve(contract_.outputs.size());
  for (const Tensor& output : contract_.outputs) {
    into.push_back(output.name.c_str());
  }
  std::vector<Ort::Value> given;
  try {
    given = session_->Run(Ort::RunOptions{nullptr}, &from, &prompt, 1, into.data(), into.size());
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine, text("ONNX Runtime failed to make rows of a condition: ", error.what()));
  }
  std::vector<Rows> rows;
  rows.reserve(given.size());
  for (const Ort::Value& output : given) {
    rows.push_back(rows_of(output, entries_of({length, bundle_.model.dim}), bundle_));
  }
  return rows;
}

Conditions ConditionGraph::of_features(const std::vector<Features>& features) {
  std::map<std::string_view, std::vector<Rows>> passed; // by the features' bytes
  Conditions found;
  for (const Features& one : features) {
    const std::string_view key = bytes_of(one.values, size_of(one));
    auto place = passed.find(key);
    if (place == passed.end()) {
      const std::vector<std::int64_t> shape = {1, one.length, one.width};
      place = passed.emplace(key, pass(tensor_of(one.values, size_of(one), shape), one.length)).first;
    }
    const std::int64_t token = bundle_.model.ids();
    found.conditional.push_back({token, place->second[0], one.length});
    found.unconditional.push_back({token, place->second[1], one.length, true});
  }
  return found;
}

std::vector<Prompt> ConditionGraph::pass_ids(const std::vector<TokenIds>& prompts, bool keep, bool bidirectional) {
  const std::int64_t start = ids_condition(bundle_.model)->start;
  std::map<TokenIds, Prompt> passed;
  std::vector<Prompt> found;
  for (const TokenIds& ids : prompts) {
    auto place = passed.find(ids);
    if (place == passed.end()) {
      const auto length = static_cast<std::int64_t>(ids.size());
      const std::int64_t together = bidirectional ? std::max<std::int64_t>(length - start, 0) : 0;
      const Rows rows = pass(tensor_of(ids.data(), ids.size(), {1, length}), length).front();
      place = passed.emplace(ids, Prompt{bundle_.model.ids(), rows, length, keep, together}).first;
    }
    found.push_back(place->second);
  }
  return found;
}

Conditions ConditionGraph::of_ids(const IdPrompts& prompts) {
  return {pass_ids(prompts.conditional, false, prompts.bidirectional),
          pass_ids(prompts.unconditional, true, prompts.bidirectional)};
}

} // namespace arforge
