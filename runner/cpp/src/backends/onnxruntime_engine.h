// The ONNX Runtime engine: caches allocated once, bound as input and output of the step graph.
//
// ONNX Runtime's attention reads every slot that it is given, so caches in host memory are bound with the slots that
// are in use, rounded up; when a step needs more, the slots move apart in their memory, a few times in a generation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include "arforge.hpp"
#include "bundle/bundle.h"
#include "plan.h"

namespace arforge {

// Host memory of one kind of step; the runner fills it, the engine fills the outputs. Two bindings of it: the first
// step of a generation may need its caches cleared, the others find them as the last step left them.
struct StepBuffers {
  std::vector<std::int64_t> tokens;          // (rows, width)
  std::vector<std::int64_t> positions;       // (rows, width)
  std::vector<std::int64_t> write_index;     // (rows)
  std::vector<std::uint8_t> mask;            // (rows, 1, width, slots), bytes 0 and 1
  std::vector<std::int64_t> query_positions; // (rows, queries)
  std::vector<float> uniforms;               // (images, outputs); outputs: queries where the model has them, or width
  std::vector<std::int64_t> next_tokens;     // (images, outputs), output
  Ort::IoBinding first{nullptr}, later{nullptr};
};

// Run-time settings of the sampler, each of shape (1).
struct Scalars {
  float guidance = 1, temperature = 1;
  std::int64_t top_k = 0;
  float top_p = 1;
};

// The sizes that caches and buffers have in a generation.
struct Extent {
  std::int64_t images, rows, slots;
  bool operator==(const Extent& other) const {
    return images == other.images && rows == other.rows && slots == other.slots;
  }
};

class Engine {
public:
  // Throws Error (engine) where ONNX Runtime, the provider or the graph does not fit.
  Engine(const Bundle& bundle, const EngineIdentity& identity, const Options& options);

  [[nodiscard]] const std::vector<std::int64_t>& widths() const { return widths_; }
  [[nodiscard]] std::int64_t growth() const { return device_ == nullptr ? 64 : 0; } // of the slots that are bound

  // Makes caches and buffers ready for all steps of a plan, zero slots cleared: nothing is allocated after it.
  void prepare(const Extent& extent, const Plan& plan);

  StepBuffers& buffers(const Shape& shape) { return buffers_.find(shape)->second; }

  // Forgets what the caches hold: NaN in a slot that no mask lets through would still reach the next request.
  void clear();

  // Executes one step of that shape from its buffers.
  void run(const Shape& shape, StepBuffers& buffers, bool first);

  // Pixels (images, height, width, 3) of tokens (images, rows, columns), appended to `result`; its size is set.
  void decode(const std::int64_t* tokens, std::int64_t images, std::int64_t rows, std::int64_t columns, Result& result);

  // The reverse.
  std::vector<std::int64_t> encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                   std::int64_t width);

  Scalars scalars;

private:
  struct Cache {
    std::string name;                            // "key_cache_0"
    std::vector<std::uint8_t> host;              // (rows, kv_heads, live slots, head_size), where in host memory
    Ort::Value value{nullptr}, cleared{nullptr}; // (rows, kv_heads, slots, head_size), where on a device
  };

  [[nodiscard]] std::size_t heads() const;      // of all rows
  [[nodiscard]] std::size_t line_bytes() const; // of one head's slot
  void check_graph();
  void allocate_caches();
  void bind(const Shape& shape);
  void spread(std::int64_t slots);
  Ort::Session& tokenizer(const char* graph, std::unique_ptr<Ort::Session>& session);

  const Bundle& bundle_;
  Options options_;
  std::vector<std::int64_t> widths_;
  Ort::Env env_{nullptr};
  Ort::Session session_{nullptr};
  std::unique_ptr<Ort::Session> decoder_, encoder_; // loaded when first used
  Ort::MemoryInfo host_{nullptr};
  Ort::Allocator device_{nullptr}; // of the caches, where they are not in host memory
  ONNXTensorElementDataType cache_type_{};
  std::size_t cache_item_ = 0; // bytes of an entry
  Extent extent_{};
  std::int64_t live_ = 0; // slots that the caches in host memory are laid out for
  std::vector<Cache> caches_;
  std::vector<std::uint8_t> zeros_; // of one cache, where caches are not in host memory
  std::map<Shape, StepBuffers> buffers_;
};

// The product of sizes that are not negative; throws std::bad_alloc where no memory could be as large.
std::size_t product(std::initializer_list<std::int64_t> sizes);

// A session over a graph file; throws Error (engine). `plain`: on the CPU whatever the options' provider.
Ort::Env open_environment();
Ort::Session open_session(Ort::Env& env, const std::filesystem::path& graph, const Options& options, bool plain);

} // namespace arforge
