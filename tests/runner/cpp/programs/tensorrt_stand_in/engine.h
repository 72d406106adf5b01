// An engine that is a text: the graph that ONNX Runtime runs in its place, and the shapes of its profiles.
//
//   arforge-stand-in
//   graph FILE
//   weights FOLDER
//   stripped              (where its weights come from the graph later)
//   profile               (each begins so)
//   shape NAME SIZES...   (of every tensor)
//   view NAME SIZES...    (an input beside those of the graph, of the cache whose name follows "view_")
#pragma once

#include <NvInferRuntime.h>
#include <map>
#include <memory>
#include <onnxruntime_cxx_api.h>
#include <string>
#include <vector>

#include "stand_in.h"

struct Tensor {
  std::string name;
  bool input;
  ONNXTensorElementDataType type;
  std::vector<std::int64_t> shape; // -1 where it is free
  std::string viewed;              // of a view: the cache that must lie where it does
};

using Shapes = std::map<std::string, std::vector<std::int64_t>>;

class Engine : public nvinfer1::ICudaEngine {
public:
  // Throws std::runtime_error for what is no such text.
  Engine(const std::string& content, nvinfer1::ILogger& logger);

  std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(tensors.size()); }
  const char* getIOTensorName(std::int32_t index) const noexcept override {
    return tensors.at(static_cast<std::size_t>(index)).name.c_str();
  }
  nvinfer1::TensorIOMode getTensorIOMode(const char* name) const noexcept override;
  nvinfer1::Dims getTensorShape(const char* name) const noexcept override;
  nvinfer1::DataType getTensorDataType(const char* name) const noexcept override;
  const char* getAliasedInputTensor(const char* name) const noexcept override;
  std::int32_t getNbOptimizationProfiles() const noexcept override {
    return static_cast<std::int32_t>(profiles.size());
  }
  nvinfer1::Dims getProfileShape(const char* name, std::int32_t profile,
                                 nvinfer1::OptProfileSelector select) const noexcept override;
  std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t profile) const noexcept override { return 1000 + profile; }
  nvinfer1::IExecutionContext*
  createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override;
  nvinfer1::IExecutionContext* createExecutionContext(nvinfer1::IRuntimeConfig* configuration) noexcept override;
  nvinfer1::IRuntimeConfig* createRuntimeConfig() noexcept override;

  nvinfer1::ILogger& logger;
  bool stripped = false;
  std::vector<Tensor> tensors;
  std::vector<Shapes> profiles;
  Shapes views;
  Ort::Session session{nullptr};

private:
  void add_views();
  const Tensor& tensor(const char* name) const;
};

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& sizes);
