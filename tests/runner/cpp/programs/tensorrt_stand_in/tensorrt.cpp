// A TensorRT that is not there: ONNX Runtime does the arithmetic, at the addresses that it is given.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "engine.h"
#include "refitter.h"

namespace {

std::int32_t part_of_version(int part) {
  std::array<int, 4> numbers{NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, 0, 1};
  if (const char* const said = std::getenv("STAND_IN_VERSION"); said != nullptr) {
    std::sscanf(said, "%d.%d.%d.%d", &numbers[0], &numbers[1], &numbers[2], &numbers[3]);
  }
  return numbers.at(static_cast<std::size_t>(part));
}

std::size_t bytes_of(ONNXTensorElementDataType type) {
  switch (type) {
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    return 8;
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    return 4;
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
    return 2;
  default:
    return 1;
  }
}

class Context : public nvinfer1::IExecutionContext {
public:
  explicit Context(Engine& engine) : engine_(engine) {}

  void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
    workspace_ = on_device(memory, static_cast<std::size_t>(size)) ? size : 0;
  }

  bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t /*stream*/) noexcept override {
    profile_ = profile;
    return profile < engine_.getNbOptimizationProfiles();
  }

  bool setInputShape(const char* name, const nvinfer1::Dims& dims) noexcept override {
    const nvinfer1::Dims wanted = getTensorShape(name);
    return dims.nbDims == wanted.nbDims && std::equal(dims.d, dims.d + dims.nbDims, wanted.d);
  }

  nvinfer1::Dims getTensorShape(const char* name) const noexcept override { return dims_of(shape(name)); }

  bool setTensorAddress(const char* name, void* data) noexcept override {
    const Inside inside;
    addresses_[name] = data;
    return true;
  }

#ifdef TRT_MAJOR_RTX
  bool isStreamCapturable(cudaStream_t /*stream*/) const noexcept override {
    return std::getenv("STAND_IN_UNCAPTURABLE") == nullptr;
  }
#endif

  bool enqueueV3(cudaStream_t stream) noexcept override {
    const Inside inside;
    if (const char* const problem = wrong(); problem != nullptr) {
      engine_.logger.log(nvinfer1::ILogger::Severity::kERROR, problem);
      return false;
    }
    const auto host = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    auto binding = std::make_shared<Ort::IoBinding>(engine_.session);
    for (const Tensor& tensor : engine_.tensors) {
      if (!tensor.viewed.empty()) {
        continue; // the session has what is there after the update
      }
      const std::vector<std::int64_t>& sizes = shape(tensor.name.c_str());
      const Ort::Value value = Ort::Value::CreateTensor(host, addresses_.at(tensor.name), size_of(tensor), sizes.data(),
                                                        sizes.size(), tensor.type);
      tensor.input ? binding->BindInput(tensor.name.c_str(), value) : binding->BindOutput(tensor.name.c_str(), value);
    }
    enqueue(stream, [this, binding] {
      engine_.session.Run(Ort::RunOptions{nullptr}, *binding);
      return true;
    });
    return true;
  }

private:
  const std::vector<std::int64_t>& shape(const char* name) const {
    return engine_.profiles.at(static_cast<std::size_t>(profile_)).at(name);
  }

  std::size_t size_of(const Tensor& tensor) const {
    std::size_t bytes = bytes_of(tensor.type);
    for (const std::int64_t size : shape(tensor.name.c_str())) {
      bytes *= static_cast<std::size_t>(size);
    }
    return bytes;
  }

  // What a device would stumble over; NULL where all is well.
  const char* wrong() const {
    if (const char* const failure = std::getenv("STAND_IN_FAILURE"); failure != nullptr) {
      return failure;
    }
    if (engine_.stripped) {
      return "the engine has no weights";
    }
    if (workspace_ < engine_.getDeviceMemorySizeForProfileV2(profile_)) {
      return "there is too little working memory";
    }
    const bool placed = std::all_of(engine_.tensors.begin(), engine_.tensors.end(), [&](const Tensor& tensor) {
      const auto place = addresses_.find(tensor.name);
      return place != addresses_.end() && on_device(place->second, size_of(tensor));
    });
    if (!placed) {
      return "a tensor has no place on the device";
    }
    const bool seen = std::all_of(engine_.tensors.begin(), engine_.tensors.end(), [&](const Tensor& tensor) {
      return tensor.viewed.empty() || addresses_.at(tensor.name) == addresses_.at(tensor.viewed);
    });
    return seen ? nullptr : "a view does not lie where its cache does";
  }

  Engine& engine_;
  std::int32_t profile_ = 0;
  std::int64_t workspace_ = 0;
  std::map<std::string, void*> addresses_;
};

#ifdef TRT_MAJOR_RTX
class Memory : public nvinfer1::IHostMemory {
public:
  explicit Memory(std::string content) : content_(std::move(content)) {}
  void* data() const noexcept override { return const_cast<char*>(content_.data()); }
  std::size_t size() const noexcept override { return content_.size(); }

private:
  std::string content_;
};

class Kernels : public nvinfer1::IRuntimeCache {
public:
  nvinfer1::IHostMemory* serialize() const noexcept override {
    return new Memory(content_.empty() ? "kernels" : content_);
  }
  bool deserialize(const void* blob, std::size_t size) noexcept override {
    const std::string content(static_cast<const char*>(blob), size);
    const bool known = content.rfind("kernels", 0) == 0;
    content_ = known ? content : "";
    return known;
  }

private:
  std::string content_;
};
#endif

class Configuration : public nvinfer1::IRuntimeConfig {
public:
  void
  setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy /*strategy*/) noexcept override {}
#ifdef TRT_MAJOR_RTX
  void setDynamicShapesKernelSpecializationStrategy(
      nvinfer1::DynamicShapesKernelSpecializationStrategy /*strategy*/) noexcept override {}
  nvinfer1::IRuntimeCache* createRuntimeCache() noexcept override { return new Kernels; }
  bool setRuntimeCache(const nvinfer1::IRuntimeCache& /*cache*/) noexcept override { return true; }
#endif
};

class Runtime : public nvinfer1::IRuntime {
public:
  explicit Runtime(nvinfer1::ILogger& logger) : logger_(logger) {}

  nvinfer1::ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept override {
    try {
      return new Engine(std::string(static_cast<const char*>(blob), size), logger_);
    } catch (const std::exception& error) {
      logger_.log(nvinfer1::ILogger::Severity::kERROR, error.what());
      return nullptr;
    }
  }

private:
  nvinfer1::ILogger& logger_;
};

class WeightsRefitter : public Refitter {
public:
  explicit WeightsRefitter(Engine& engine) : engine_(engine) {}

  bool take(const char* file) noexcept override {
    ready_ = std::ifstream(file).good();
    if (!ready_) {
      engine_.logger.log(nvinfer1::ILogger::Severity::kERROR, "there is no such graph");
    }
    return ready_;
  }

  bool refitCudaEngine() noexcept override {
    engine_.stripped = !ready_;
    return ready_;
  }

private:
  Engine& engine_;
  bool ready_ = false;
};

} // namespace

nvinfer1::IExecutionContext*
Engine::createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept {
  return strategy == nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED ? new Context(*this) : nullptr;
}

nvinfer1::IExecutionContext* Engine::createExecutionContext(nvinfer1::IRuntimeConfig* configuration) noexcept {
  return configuration == nullptr ? nullptr : new Context(*this);
}

nvinfer1::IRuntimeConfig* Engine::createRuntimeConfig() noexcept { return new Configuration; }

void* createInferRuntime_INTERNAL(void* logger, std::int32_t version) noexcept {
  return version == NV_TENSORRT_VERSION
             ? static_cast<nvinfer1::IRuntime*>(new Runtime(*static_cast<nvinfer1::ILogger*>(logger)))
             : nullptr;
}

void* createInferRefitter_INTERNAL(void* engine, void* /*logger*/, std::int32_t /*version*/) noexcept {
  auto& refitted = static_cast<Engine&>(*static_cast<nvinfer1::ICudaEngine*>(engine));
  return static_cast<nvinfer1::IRefitter*>(new WeightsRefitter(refitted));
}

std::int32_t getInferLibMajorVersion() noexcept { return part_of_version(0); }
std::int32_t getInferLibMinorVersion() noexcept { return part_of_version(1); }
std::int32_t getInferLibPatchVersion() noexcept { return part_of_version(2); }
std::int32_t getInferLibBuildVersion() noexcept { return part_of_version(3); }
