// A TensorRT engine file in device memory, and programs: it at one of its profiles, as one CUDA graph.
//
// A program's graph copies the inputs in, runs the engine and copies the outputs out, so that a run is one launch and
// one wait. Tensors that stay on the device, the caches, have a place of their own and are never copied.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/cuda.h"
#include "backends/kernel_cache.h"
#include "backends/tensorrt_library.h"
#include "step_graph.h"

namespace arforge {

class Program;

// Where tensors stay on the device, by name.
using Places = std::map<std::string, std::uint8_t*>;

// An engine on the GPU with the working memory that its programs share, since only one runs at a time.
class LoadedEngine {
public:
  // Throws Error (engine) if the library refuses the file. `stripped_from`: the graph of an engine without weights.
  LoadedEngine(std::filesystem::path path, Library& library, Gpu& gpu,
               const std::optional<std::filesystem::path>& stripped_from = {});
  LoadedEngine(const LoadedEngine&) = delete;
  LoadedEngine& operator=(const LoadedEngine&) = delete;
  // Keeps the kernels that were compiled meanwhile. Programs must be gone.
  ~LoadedEngine();

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  // The engine at that profile.
  std::unique_ptr<Program> program(std::int32_t profile, const Places& placed);

  // Whether an output is written where that input is read.
  [[nodiscard]] bool aliases(const std::string& output, const std::string& input) const;

private:
  friend class Program;
  std::unique_ptr<nvinfer1::IExecutionContext> make_context();
  [[noreturn]] void refuse(const char* what) const; // with what the library says
  void configure();
  void refit(const std::filesystem::path& graph);

  std::filesystem::path path_;
  Library& library_;
  Gpu& gpu_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::uint8_t* workspace_ = nullptr;
  std::int64_t workspace_bytes_ = 0;
#ifdef TRT_MAJOR_RTX
  void keep_kernels() noexcept;

  KernelCache kernels_;
  std::string known_;                                       // kernels that are kept
  std::unique_ptr<nvinfer1::IRuntimeCache> cache_;          // of kernels
  std::unique_ptr<nvinfer1::IRuntimeConfig> configuration_; // which refers to it, and goes first
#endif
};

// One tensor of a program on the host.
struct HostTensor {
  std::uint8_t* data;
  std::vector<std::int64_t> shape;
  Type type;
  std::size_t bytes;
};

// Tensors side by side in device memory, and on the host, where they are copied from or to.
class Block {
public:
  // A tensor's name with its shape and type.
  using Kinds = std::vector<std::pair<std::string, HostTensor>>;

  // The host's memory is zero, the device's is as it was.
  Block(Gpu& gpu, const Kinds& kinds);

  void upload(Gpu& gpu) const { gpu.upload(device_, host_, bytes_); }
  void download(Gpu& gpu) const { gpu.download(host_, device_, bytes_); }

  std::map<std::string, HostTensor> tensors;
  Places addresses; // on the device

private:
  std::uint8_t *device_ = nullptr, *host_ = nullptr;
  std::size_t bytes_ = 0;
};

// Work that is queued call by call the first time, and is one CUDA graph from then on.
class Program {
public:
  Program(LoadedEngine& loaded, std::unique_ptr<nvinfer1::IExecutionContext> context, std::int32_t profile,
          const Places& placed);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // The tensor of that name on the host; NULL where there is none, or it stays on the device.
  HostTensor* input(const std::string& name) { return found(input_->tensors, name); }
  HostTensor* output(const std::string& name) { return found(output_->tensors, name); }
  [[nodiscard]] const std::map<std::string, HostTensor>& inputs() const { return input_->tensors; }
  [[nodiscard]] const std::map<std::string, HostTensor>& outputs() const { return output_->tensors; }

  // Where those lie on the device.
  [[nodiscard]] const Places& input_places() const { return input_->addresses; }
  [[nodiscard]] const Places& output_places() const { return output_->addresses; }
  // Queues the copy of the inputs alone.
  void upload() const { input_->upload(loaded_.gpu_); }

  // The type and shape of every tensor by name, wherever it lies.
  [[nodiscard]] std::map<std::string, HostTensor> kinds() const;

  // Executes on the inputs and fills the outputs. Throws Error (engine) if the engine or the GPU fails.
  void run();

  // Queues the engine alone, on what lies on the device; `elsewhere`: of tensors that lie elsewhere this time. Throws
  // Error (engine) if it fails.
  void execute(const Places& elsewhere = {});
  [[nodiscard]] bool capturable() const;

private:
  static HostTensor* found(std::map<std::string, HostTensor>& tensors, const std::string& name) {
    const auto place = tensors.find(name);
    return place == tensors.end() ? nullptr : &place->second;
  }
  [[nodiscard]] HostTensor kind_of(const char* name) const;
  void bind(const char* name, void* address);
  void place(const char* name, std::uint8_t* address);
  void queue();

  LoadedEngine& loaded_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::unique_ptr<Block> input_, output_;
  Places addresses_; // of all its tensors
  cudaGraphExec_t graph_ = nullptr;
  bool looked_ = false; // whether it can be captured
};

} // namespace arforge
