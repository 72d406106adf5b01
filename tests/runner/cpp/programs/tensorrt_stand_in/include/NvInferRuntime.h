// Of TensorRT's interface what arforge uses: names, signatures and values as NVIDIA's public header has them, written
// anew. Where that forwards to a table of its own, functions are virtual here, which code that is compiled against
// either cannot tell.
#pragma once

#include "NvInferVersion.h"

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace nvinfer1 {

class ILogger {
public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

class INoCopy {
public:
  INoCopy(const INoCopy&) = delete;
  INoCopy& operator=(const INoCopy&) = delete;
  virtual ~INoCopy() = default;

protected:
  INoCopy() = default;
};

enum class DataType : std::int32_t {
  kFLOAT = 0,
  kHALF = 1,
  kINT8 = 2,
  kINT32 = 3,
  kBOOL = 4,
  kUINT8 = 5,
  kBF16 = 7,
  kINT64 = 8,
};

class Dims64 {
public:
  static constexpr std::int32_t MAX_DIMS{8};
  std::int32_t nbDims;
  std::int64_t d[MAX_DIMS];
};
using Dims = Dims64;

enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class OptProfileSelector : std::int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC = 0, kON_PROFILE_CHANGE = 1, kUSER_MANAGED = 2 };

class IHostMemory : public INoCopy {
public:
  [[nodiscard]] virtual void* data() const noexcept = 0;
  [[nodiscard]] virtual std::size_t size() const noexcept = 0;
};

class IExecutionContext : public INoCopy {
public:
  virtual void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept = 0;
  virtual bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t stream) noexcept = 0;
  virtual bool setInputShape(const char* name, const Dims& dims) noexcept = 0;
  [[nodiscard]] virtual Dims getTensorShape(const char* name) const noexcept = 0;
  virtual bool setTensorAddress(const char* name, void* data) noexcept = 0;
  virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
#ifdef TRT_MAJOR_RTX
  [[nodiscard]] virtual bool isStreamCapturable(cudaStream_t stream) const noexcept = 0;
#endif
};

#ifdef TRT_MAJOR_RTX
enum class DynamicShapesKernelSpecializationStrategy : std::int32_t { kLAZY = 0, kEAGER = 1, kNONE = 2 };

class IRuntimeCache : public INoCopy {
public:
  [[nodiscard]] virtual IHostMemory* serialize() const noexcept = 0;
  virtual bool deserialize(const void* blob, std::size_t size) noexcept = 0;
};
#endif

class IRuntimeConfig : public INoCopy {
public:
  virtual void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy strategy) noexcept = 0;
#ifdef TRT_MAJOR_RTX
  virtual void
  setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept = 0;
  virtual IRuntimeCache* createRuntimeCache() noexcept = 0;
  virtual bool setRuntimeCache(const IRuntimeCache& cache) noexcept = 0;
#endif
};

class ICudaEngine : public INoCopy {
public:
  [[nodiscard]] virtual std::int32_t getNbIOTensors() const noexcept = 0;
  [[nodiscard]] virtual const char* getIOTensorName(std::int32_t index) const noexcept = 0;
  [[nodiscard]] virtual TensorIOMode getTensorIOMode(const char* name) const noexcept = 0;
  [[nodiscard]] virtual Dims getTensorShape(const char* name) const noexcept = 0;
  [[nodiscard]] virtual DataType getTensorDataType(const char* name) const noexcept = 0;
  [[nodiscard]] virtual const char* getAliasedInputTensor(const char* name) const noexcept = 0;
  [[nodiscard]] virtual std::int32_t getNbOptimizationProfiles() const noexcept = 0;
  [[nodiscard]] virtual Dims getProfileShape(const char* name, std::int32_t profile,
                                             OptProfileSelector select) const noexcept = 0;
  [[nodiscard]] virtual std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t profile) const noexcept = 0;
  virtual IExecutionContext* createExecutionContext(
      ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC) noexcept = 0;
  virtual IExecutionContext* createExecutionContext(IRuntimeConfig* configuration) noexcept = 0;
  virtual IRuntimeConfig* createRuntimeConfig() noexcept = 0;
};

class IRuntime : public INoCopy {
public:
  virtual ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept = 0;
};

class IRefitter : public INoCopy {
public:
  virtual bool refitCudaEngine() noexcept = 0;
};

} // namespace nvinfer1

extern "C" {
void* createInferRuntime_INTERNAL(void* logger, std::int32_t version) noexcept;
void* createInferRefitter_INTERNAL(void* engine, void* logger, std::int32_t version) noexcept;
std::int32_t getInferLibMajorVersion() noexcept;
std::int32_t getInferLibMinorVersion() noexcept;
std::int32_t getInferLibPatchVersion() noexcept;
std::int32_t getInferLibBuildVersion() noexcept;
}
