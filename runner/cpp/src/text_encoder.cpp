#include "text_encoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string_view>

#include "request.h"
#include "text.h"

namespace arforge {
namespace {

constexpr const char* GRAPH = "text";

} // namespace

void check_encodable(const std::vector<Ids>& ids, const Bundle& bundle) {
  const FeaturesCondition* condition = features_condition(bundle.model);
  if (condition == nullptr) {
    throw Error(Code::request, text("this ", bundle.model.family, " model takes classes, not ids"));
  }
  if (find_graph(bundle, GRAPH) == nullptr) {
    throw Error(Code::request, text(bundle.root.string(),
                                    " has no text encoder: export it with --text-encoder FOLDER, or give features"));
  }
  check_ids(ids, condition->slots, "the ids");
}

TextEncoder::TextEncoder(const Bundle& bundle, const Options& options)
    : bundle_(bundle), options_(options), env_(open_environment()) {}

std::shared_ptr<const std::vector<float>> TextEncoder::run(const Ids& ids) {
  const Contract contract = contract_of(bundle_.model, GRAPH, Type::float32);
  if (session_ == nullptr) {
    const Graph* graph = find_graph(bundle_, GRAPH);
    const std::filesystem::path path = graph_path(bundle_, GRAPH, graph == nullptr ? "" : graph->precision);
    auto session = std::make_unique<Ort::Session>(open_session(env_, path, options_, true));
    check_session(*session, contract, text("the text encoder of ", bundle_.root.string()));
    session_ = std::move(session);
  }
  const Ort::MemoryInfo host = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  const std::array<std::int64_t, 2> shape = {1, ids.length};
  const auto length = static_cast<std::size_t>(ids.length);
  std::vector<std::int64_t> ones(length, 1);
  auto* const values = const_cast<std::int64_t*>(ids.values); // is only read
  std::array<Ort::Value, 2> given = {
      Ort::Value::CreateTensor<std::int64_t>(host, values, length, shape.data(), shape.size()),
      Ort::Value::CreateTensor<std::int64_t>(host, ones.data(), length, shape.data(), shape.size())};
  const std::array<const char*, 2> from = {contract.inputs[0].name.c_str(), contract.inputs[1].name.c_str()};
  const char* const into = contract.outputs.front().name.c_str();
  std::vector<Ort::Value> found;
  try {
    found = session_->Run(Ort::RunOptions{nullptr}, from.data(), given.data(), given.size(), &into, 1);
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine,
                text("ONNX Runtime failed in the text encoder of ", bundle_.root.string(), ": ", error.what()));
  }
  const std::size_t size = entries_of({ids.length, features_condition(bundle_.model)->width});
  if (found.front().GetTensorTypeAndShapeInfo().GetElementCount() != size) {
    throw Error(Code::engine, text("the text encoder of ", bundle_.root.string(),
                                   " gives other rows than the prompt has tokens: export the bundle again"));
  }
  const auto* features = found.front().GetTensorData<float>();
  if (!std::all_of(features, features + size, [](float value) { return std::isfinite(value); })) {
    throw Error(Code::numerics,
                text("the text encoder of ", bundle_.root.string(), " gives features that are not finite"));
  }
  return std::make_shared<const std::vector<float>>(features, features + size);
}

std::vector<std::shared_ptr<const std::vector<float>>> TextEncoder::features(const std::vector<Ids>& ids) {
  std::map<std::string_view, std::shared_ptr<const std::vector<float>>> known; // by the ids' bytes
  std::vector<std::shared_ptr<const std::vector<float>>> found;
  for (const Ids& one : ids) {
    const std::string_view key(reinterpret_cast<const char*>(one.values),
                               static_cast<std::size_t>(one.length) * sizeof *one.values);
    auto place = known.find(key);
    if (place == known.end()) {
      place = known.emplace(key, run(one)).first;
    }
    found.push_back(place->second);
  }
  return found;
}

} // namespace arforge
