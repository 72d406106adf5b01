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
  if (token != other.token || length != other.length) {
    return false;
  }
  return rows == other.rows || bytes_of(rows->data(), rows->size()) == bytes_of(other.rows->data(), other.rows->size());
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
  const FeaturesCondition* condition = features_condition(model);
  return condition == nullptr ? 0 : std::min(condition->slots - 1, (longest + GRANULE - 1) / GRANULE * GRANULE);
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
  if (features_condition(bundle.model) != nullptr) {
    contract_ = contract_of(bundle.model, "condition", Type::float32);
  }
}

ConditionGraph::Pair ConditionGraph::pass(const Features& features) {
  if (session_ == nullptr) { // fp32 is its only precision
    session_ =
        std::make_unique<Ort::Session>(open_session(env_, graph_path(bundle_, "condition", "fp32"), options_, true));
    check_session(*session_, contract_, text("the condition graph of ", bundle_.root.string()));
  }
  const Ort::MemoryInfo host = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  const std::vector<std::int64_t> shape = {1, features.length, features.width};
  const Ort::Value tensor = Ort::Value::CreateTensor<float>(host, const_cast<float*>(features.values), // is only read
                                                            size_of(features), shape.data(), shape.size());
  const char* const from = contract_.inputs.front().name.c_str();
  const char* const into[] = {contract_.outputs[0].name.c_str(), contract_.outputs[1].name.c_str()};
  std::vector<Ort::Value> given;
  try {
    given = session_->Run(Ort::RunOptions{nullptr}, &from, &tensor, 1, into, 2);
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine, text("ONNX Runtime failed to make rows of a condition: ", error.what()));
  }
  const std::size_t size = entries_of({features.length, bundle_.model.dim});
  const std::int64_t token = bundle_.model.ids();
  return {{token, rows_of(given[0], size, bundle_), features.length},
          {token, rows_of(given[1], size, bundle_), features.length, true}};
}

Conditions ConditionGraph::conditions(const std::vector<Features>& features) {
  std::map<std::string_view, Pair> passed; // by the features' bytes
  Conditions found;
  for (const Features& one : features) {
    const std::string_view key = bytes_of(one.values, size_of(one));
    auto place = passed.find(key);
    if (place == passed.end()) {
      place = passed.emplace(key, pass(one)).first;
    }
    found.conditional.push_back(place->second.given);
    found.unconditional.push_back(place->second.none);
  }
  return found;
}

} // namespace arforge
