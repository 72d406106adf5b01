#include "engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace {

Ort::Env& environment() {
  static Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "stand-in");
  return env;
}

Ort::Session open(const std::string& graph, const std::string& weights) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  options.AddConfigEntry("session.model_external_initializers_file_folder_path", weights.c_str());
  return {environment(), graph.c_str(), options};
}

} // namespace

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& sizes) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), dims.d);
  return dims;
}

Engine::Engine(const std::string& content, nvinfer1::ILogger& given) : logger(given) {
  std::istringstream lines(content);
  std::string line;
  std::string graph;
  std::string weights;
  if (!std::getline(lines, line) || line != "arforge-stand-in") {
    throw std::runtime_error("the file is not an engine");
  }
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word == "graph" || word == "weights") {
      (word == "graph" ? graph : weights) = line.substr(word.size() + 1);
    } else if (word == "stripped") {
      stripped = true;
    } else if (word == "profile") {
      profiles.emplace_back();
    } else if (word == "shape" || word == "view") {
      std::string name;
      words >> name;
      std::vector<std::int64_t>& sizes = (word == "view" ? views : profiles.back())[name];
      for (std::int64_t size = 0; words >> size;) {
        sizes.push_back(size);
      }
    }
  }
  session = open(graph, weights);
  const auto add = [&](const std::string& name, const Ort::TypeInfo& type, bool input) {
    const auto facts = type.GetTensorTypeAndShapeInfo();
    tensors.push_back({name, input, facts.GetElementType(), facts.GetShape(), ""});
  };
  const std::vector<std::string> inputs = session.GetInputNames();
  for (std::size_t index = 0; index < inputs.size(); index++) {
    add(inputs[index], session.GetInputTypeInfo(index), true);
  }
  const std::vector<std::string> outputs = session.GetOutputNames();
  for (std::size_t index = 0; index < outputs.size(); index++) {
    add(outputs[index], session.GetOutputTypeInfo(index), false);
  }
  add_views();
}

void Engine::add_views() {
  for (const auto& [name, sizes] : views) {
    const std::string cache = name.substr(std::strlen("view_"));
    tensors.push_back({name, true, tensor(cache.c_str()).type, sizes, cache});
  }
}

const Tensor& Engine::tensor(const char* name) const {
  return *std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& one) { return one.name == name; });
}

nvinfer1::TensorIOMode Engine::getTensorIOMode(const char* name) const noexcept {
  return tensor(name).input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
}

nvinfer1::Dims Engine::getTensorShape(const char* name) const noexcept { return dims_of(tensor(name).shape); }

nvinfer1::DataType Engine::getTensorDataType(const char* name) const noexcept {
  switch (tensor(name).type) {
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
    return nvinfer1::DataType::kBOOL;
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
    return nvinfer1::DataType::kUINT8;
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    return nvinfer1::DataType::kINT64;
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    return nvinfer1::DataType::kHALF;
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
    return nvinfer1::DataType::kBF16;
  default:
    return nvinfer1::DataType::kFLOAT;
  }
}

const char* Engine::getAliasedInputTensor(const char* name) const noexcept {
  const bool written = std::strncmp(name, "new_", 4) == 0 && std::getenv("STAND_IN_COPIES") == nullptr;
  return written ? name + 4 : nullptr;
}

nvinfer1::Dims Engine::getProfileShape(const char* name, std::int32_t profile,
                                       nvinfer1::OptProfileSelector /*select*/) const noexcept {
  return dims_of(profiles.at(static_cast<std::size_t>(profile)).at(name));
}
