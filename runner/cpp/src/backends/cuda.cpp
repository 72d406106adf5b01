#include "backends/cuda.h"

#include <algorithm>
#include <iomanip>
#include <numeric>

#include "arforge.hpp"
#include "text.h"

namespace arforge {
namespace {

void check(cudaError_t error, const char* function) {
  if (error == cudaSuccess) {
    return;
  }
  (void)cudaGetLastError(); // which would be told again
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) {
    throw Error(Code::engine, text("there is no CUDA GPU here, or no driver for CUDA ", CUDART_VERSION / 1000,
                                   ": use --target onnxruntime"));
  }
  throw Error(Code::engine, text("CUDA failed in ", function, ": ", cudaGetErrorString(error)));
}

// Memory that is not there is told by how much was wanted.
void* allocated(cudaError_t error, const char* function, void* place, std::size_t size) {
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    const double wanted = static_cast<double>(size) / static_cast<double>(1 << 30);
    throw Error(Code::engine, text("no memory on the GPU for ", std::fixed, std::setprecision(2), wanted,
                                   " GiB: use a smaller batch"));
  }
  check(error, function);
  return place;
}

int attribute(cudaDeviceAttr name) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, 0), "cudaDeviceGetAttribute");
  return value;
}

} // namespace

Planes Planes::of(std::size_t line, std::size_t lines) {
  const std::size_t step = ALIGNMENT / std::gcd(line, ALIGNMENT);
  return {nullptr, line, (lines + step - 1) / step * step};
}

Gpu::Gpu() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (count == 0) {
    throw Error(Code::engine, "there is no CUDA GPU here: use --target onnxruntime");
  }
  compute_capability_ =
      text(attribute(cudaDevAttrComputeCapabilityMajor), ".", attribute(cudaDevAttrComputeCapabilityMinor));
  check(cudaStreamCreate(&stream_), "cudaStreamCreate");
}

Gpu::~Gpu() { // whatever fails here, there is nothing left to do about it
  for (cudaGraphExec_t graph : graphs_) {
    cudaGraphExecDestroy(graph);
  }
  for (void* const place : memory_) {
    cudaFree(place);
  }
  for (void* const place : pinned_) {
    cudaFreeHost(place);
  }
  cudaStreamDestroy(stream_);
}

std::uint8_t* Gpu::allocate(std::size_t size) {
  memory_.reserve(memory_.size() + 1);
  void* place = nullptr;
  const cudaError_t error = cudaMalloc(&place, std::max<std::size_t>(size, 1));
  memory_.push_back(allocated(error, "cudaMalloc", place, size));
  return static_cast<std::uint8_t*>(place);
}

std::uint8_t* Gpu::pinned(std::size_t size) {
  pinned_.reserve(pinned_.size() + 1);
  void* place = nullptr;
  const cudaError_t error = cudaMallocHost(&place, std::max<std::size_t>(size, 1));
  pinned_.push_back(allocated(error, "cudaMallocHost", place, size));
  return static_cast<std::uint8_t*>(place);
}

void Gpu::upload(std::uint8_t* target, const std::uint8_t* source, std::size_t size) {
  check(cudaMemcpyAsync(target, source, size, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
}

void Gpu::download(std::uint8_t* target, const std::uint8_t* source, std::size_t size) {
  check(cudaMemcpyAsync(target, source, size, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
}

void Gpu::upload_rows(std::uint8_t* target, std::size_t pitch, const std::uint8_t* source, std::size_t width,
                      std::size_t rows) {
  check(cudaMemcpy2DAsync(target, pitch, source, width, width, rows, cudaMemcpyHostToDevice, stream_),
        "cudaMemcpy2DAsync");
}

void Gpu::download_rows(std::uint8_t* target, const std::uint8_t* source, std::size_t pitch, std::size_t width,
                        std::size_t rows) {
  check(cudaMemcpy2DAsync(target, width, source, pitch, width, rows, cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpy2DAsync");
}

void Gpu::copy_box(const std::array<std::size_t, 3>& extent, const Planes& target, const Planes& source) {
  const cudaMemcpy3DParms wanted = {nullptr,
                                    {},
                                    {source.place, source.line, source.line, source.lines},
                                    nullptr,
                                    {},
                                    {target.place, target.line, target.line, target.lines},
                                    {extent[0], extent[1], extent[2]},
                                    cudaMemcpyDeviceToDevice};
  check(cudaMemcpy3DAsync(&wanted, stream_), "cudaMemcpy3DAsync");
}

void Gpu::clear(std::uint8_t* target, std::size_t pitch, std::size_t width, std::size_t rows) {
  check(cudaMemset2DAsync(target, pitch, 0, width, rows, stream_), "cudaMemset2DAsync");
}

void Gpu::begin_capture() {
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

void Gpu::abandon_capture() noexcept {
  cudaGraph_t graph = nullptr;
  if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess && graph != nullptr) {
    cudaGraphDestroy(graph);
  }
  (void)cudaGetLastError(); // the first failure counts
}

cudaGraphExec_t Gpu::end_capture() {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "cudaGraphInstantiate");
  graphs_.push_back(executable);
  return executable;
}

void Gpu::launch(cudaGraphExec_t graph) { check(cudaGraphLaunch(graph, stream_), "cudaGraphLaunch"); }

void Gpu::discard(cudaGraphExec_t graph) noexcept {
  cudaStreamSynchronize(stream_);
  cudaGraphExecDestroy(graph);
  graphs_.erase(std::find(graphs_.begin(), graphs_.end(), graph));
  (void)cudaGetLastError(); // which the next call would be told
}

void Gpu::synchronize() { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

} // namespace arforge
