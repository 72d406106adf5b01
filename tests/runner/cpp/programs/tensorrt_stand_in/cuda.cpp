// A GPU that is not there: its memory is the host's, and its stream does what it is given when it is waited for.
#include "stand_in.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

struct CUgraph_st {
  std::vector<Work> works;
};
struct CUgraphExec_st : CUgraph_st {};

struct CUstream_st {
  std::vector<Work> queued;
  std::unique_ptr<CUgraph_st> capturing;
};

namespace {

constexpr std::size_t ALIGNMENT = 256;
constexpr int GARBAGE = 0xFF; // as floats: NaN

thread_local int depth = 0;
std::mutex lock; // of what follows
std::map<const std::uint8_t*, std::size_t> memory;
stand_in_counts counts{};

std::int64_t number(const char* variable, std::int64_t otherwise) {
  const char* const value = std::getenv(variable);
  return value == nullptr ? otherwise : std::atoll(value);
}

const bool TOLD =
    std::atexit([] {
      const char* const path = std::getenv("STAND_IN_COUNTS");
      std::FILE* const file = path == nullptr ? nullptr : std::fopen(path, "w");
      if (file != nullptr) {
        for (const std::int64_t count : {counts.allocations, counts.waits, counts.launches, counts.captures,
                                         counts.copies, counts.largest_copy, counts.moved}) {
          std::fprintf(file, "%lld\n", static_cast<long long>(count));
        }
        std::fclose(file);
      }
    }) == 0;

cudaError_t allocate(void** place, std::size_t size) {
  *place = std::aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  if (*place == nullptr) {
    return cudaErrorMemoryAllocation;
  }
  std::memset(*place, GARBAGE, size);
  return cudaSuccess;
}

void count_copy(std::size_t bytes) {
  const std::lock_guard<std::mutex> held(lock);
  counts.copies++;
  counts.largest_copy = std::max(counts.largest_copy, static_cast<std::int64_t>(bytes));
}

void count(std::int64_t& number, std::size_t more = 1) {
  const std::lock_guard<std::mutex> held(lock);
  number += static_cast<std::int64_t>(more);
}

// Queues the copy of rows; what is on the device must be what the direction says.
cudaError_t copy(void* target, std::size_t target_pitch, const void* source, std::size_t source_pitch,
                 std::size_t width, std::size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  const bool up = kind == cudaMemcpyHostToDevice;
  const std::size_t into = rows == 0 ? 0 : (rows - 1) * target_pitch + width;
  const std::size_t from = rows == 0 ? 0 : (rows - 1) * source_pitch + width;
  if (on_device(target, into) != up || on_device(source, from) == up) {
    return cudaErrorInvalidValue;
  }
  if (stream->capturing == nullptr) {
    count_copy(width * rows);
  }
  enqueue(stream, [=] {
    for (std::size_t row = 0; row < rows; row++) {
      std::memcpy(static_cast<char*>(target) + row * target_pitch,
                  static_cast<const char*>(source) + row * source_pitch, width);
    }
    count(counts.moved, width * rows);
    count(up ? counts.sent : counts.fetched, width * rows);
    return true;
  });
  return cudaSuccess;
}

} // namespace

Inside::Inside() { depth++; }
Inside::~Inside() { depth--; }

void enqueue(cudaStream_t stream, Work work) {
  (stream->capturing == nullptr ? stream->queued : stream->capturing->works).push_back(std::move(work));
}

bool on_device(const void* place, std::size_t size) {
  const auto* const first = static_cast<const std::uint8_t*>(place);
  const std::lock_guard<std::mutex> held(lock);
  const auto after = memory.upper_bound(first);
  if (after == memory.begin()) {
    return false;
  }
  const auto& [start, bytes] = *std::prev(after);
  return first + size <= start + bytes;
}

int stand_in_inside() { return depth; }

void stand_in_count(stand_in_counts* found) {
  const std::lock_guard<std::mutex> held(lock);
  *found = counts;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(number("STAND_IN_DEVICES", 1));
  return *count < 0 ? cudaErrorInsufficientDriver : cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  const char* const said = std::getenv("STAND_IN_CAPABILITY");
  const char* const capability = said == nullptr ? "8.6" : said;
  const char* const point = std::strchr(capability, '.');
  *value = std::atoi(attribute == cudaDevAttrComputeCapabilityMajor ? capability : point + 1);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidValue ? "invalid argument" : "some error";
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Inside inside;
  if (stream->capturing != nullptr) {
    return cudaErrorStreamCaptureInvalidated;
  }
  count(counts.waits);
  const std::vector<Work> works = std::move(stream->queued);
  stream->queued.clear();
  const bool well = std::all_of(works.begin(), works.end(), [](const Work& work) { return work(); });
  return well ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaMalloc(void** place, std::size_t size) {
  const Inside inside;
  std::size_t used = size;
  {
    const std::lock_guard<std::mutex> held(lock);
    for (const auto& [start, bytes] : memory) {
      used += bytes;
    }
  }
  if (used > static_cast<std::size_t>(number("STAND_IN_MEMORY", INT64_MAX))) {
    return cudaErrorMemoryAllocation;
  }
  const cudaError_t error = allocate(place, size);
  const std::lock_guard<std::mutex> held(lock);
  memory[static_cast<std::uint8_t*>(*place)] = size;
  counts.allocations++;
  return error;
}

cudaError_t cudaMallocHost(void** place, std::size_t size) {
  const Inside inside;
  count(counts.allocations);
  return allocate(place, size);
}

cudaError_t cudaFree(void* place) {
  const std::lock_guard<std::mutex> held(lock);
  memory.erase(static_cast<std::uint8_t*>(place));
  std::free(place);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* place) {
  std::free(place);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const Inside inside;
  return copy(target, size, source, size, size, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* target, std::size_t target_pitch, const void* source, std::size_t source_pitch,
                              std::size_t width, std::size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  const Inside inside;
  return copy(target, target_pitch, source, source_pitch, width, rows, kind, stream);
}

cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms* wanted, cudaStream_t stream) {
  const Inside inside;
  const auto [width, height, planes] = wanted->extent;
  const cudaPitchedPtr target = wanted->dstPtr;
  const cudaPitchedPtr source = wanted->srcPtr;
  for (const cudaPitchedPtr& one : {target, source}) {
    const std::size_t lines = (planes - 1) * one.ysize + height - 1;
    if (width > one.pitch || height > one.ysize || !on_device(one.ptr, lines * one.pitch + width)) {
      return cudaErrorInvalidValue;
    }
  }
  if (wanted->kind != cudaMemcpyDeviceToDevice) {
    return cudaErrorInvalidValue;
  }
  const std::size_t size = width * height * planes;
  count_copy(size);
  enqueue(stream, [target, source, extent = wanted->extent, size] {
    for (std::size_t plane = 0; plane < extent.depth; plane++) {
      for (std::size_t line = 0; line < extent.height; line++) {
        std::memcpy(static_cast<char*>(target.ptr) + (plane * target.ysize + line) * target.pitch,
                    static_cast<const char*>(source.ptr) + (plane * source.ysize + line) * source.pitch, extent.width);
      }
    }
    count(counts.moved, size);
    return true;
  });
  return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void* place, std::size_t pitch, int value, std::size_t width, std::size_t rows,
                              cudaStream_t stream) {
  const Inside inside;
  if (width > pitch || !on_device(place, rows == 0 ? 0 : (rows - 1) * pitch + width)) {
    return cudaErrorInvalidValue;
  }
  enqueue(stream, [=] {
    for (std::size_t row = 0; row < rows; row++) {
      std::memset(static_cast<char*>(place) + row * pitch, value, width);
    }
    return true;
  });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  const Inside inside;
  if (std::getenv("STAND_IN_UNCAPTURABLE") != nullptr) {
    return cudaErrorStreamCaptureInvalidated;
  }
  stream->capturing = std::make_unique<CUgraph_st>();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Inside inside;
  *graph = stream->capturing.release();
  count(counts.captures);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long /*flags*/) {
  const Inside inside;
  *executable = new CUgraphExec_st{graph->works};
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Inside inside;
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Inside inside;
  for (const Work& work : executable->works) {
    enqueue(stream, work);
  }
  count(counts.launches);
  return cudaSuccess;
}
