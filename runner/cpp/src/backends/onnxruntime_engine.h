// The ONNX Runtime engine: it steps, and nothing else. Caches are allocated once, bound as input and output of the step
// graph.
//
// ONNX Runtime's attention reads every slot that it is given, so caches in host memory are bound with the slots that
// are in use, rounded up; when a step needs more, the slots move apart in their memory, a few times in a generation.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "arforge.hpp"
#include "backends/engine.h"
#include "backends/folded_graph.h"
#include "backends/onnxruntime_session.h"
#include "bundle/bundle.h"
#include "step_graph.h"

namespace arforge {

class OnnxRuntimeEngine : public Engine {
public:
  // Throws Error (engine) if ONNX Runtime, the provider or the graph does not fit.
  OnnxRuntimeEngine(const Bundle& bundle, const EngineIdentity& identity, const Options& options);

  void prepare(const Extent& extent, const std::vector<Shape>& shapes, std::int64_t zero_slots) override;
  [[nodiscard]] bool has_low_caches(std::int64_t lockstep) const override;
  StepBuffers& buffers(const Shape& shape) override;
  void clear() override;
  void run(const Shape& shape, bool first) override;
  [[nodiscard]] CacheContent read_cache(std::int64_t row, std::int64_t first, std::int64_t count) override;
  void write_cache(std::int64_t row, std::int64_t first, const CacheContent& content) override;

private:
  struct Cache {
    std::string name; // "key_cache_0"
    Type type;
    std::vector<std::uint8_t> host;              // (rows, kv_heads, live slots, head_size), where in host memory
    Ort::Value value{nullptr}, cleared{nullptr}; // (rows, kv_heads, slots, head_size), where on a device
  };

  using Inputs = std::pair<std::int64_t, std::int64_t>; // width and queries

  // One kind of step. Two bindings of its memory: the first step of a generation may need its caches cleared, the
  // others find them as the last step left them.
  struct Bound {
    Ort::IoBinding first{nullptr}, later{nullptr};
  };

  [[nodiscard]] std::vector<std::int64_t> cache_shape(std::int64_t slots) const;
  [[nodiscard]] std::size_t heads() const;                        // of all rows
  [[nodiscard]] std::size_t line_bytes(const Cache& cache) const; // of one head's slot
  void choose_graph(std::int64_t rows, bool low);
  void find_device();
  void allocate_caches();
  void bind(const Shape& shape);
  void forget_shapes();
  void bind_caches(Ort::IoBinding& binding, bool first, std::int64_t slots);
  void spread(std::int64_t slots);
  std::uint8_t* place(Cache& cache, std::int64_t row, std::int64_t head, std::int64_t slot);

  const Bundle& bundle_;
  const EngineIdentity identity_;
  const Options options_;
  const std::map<std::string, std::vector<std::string>> again_; // outputs by cache of a folded graph, in its memory
  Contract contract_;
  Ort::Env env_;
  Ort::Session session_{nullptr};
  std::vector<std::int64_t> folded_rows_;              // numbers that the open graph is folded for; none: it is not
  std::vector<std::int64_t> rows_used_ = usual_rows(); // the latest first
  Ort::MemoryInfo host_;
  Ort::Allocator device_{nullptr}; // of the caches, where they are not in host memory
  Extent extent_{};
  std::int64_t live_ = 0; // slots that the caches in host memory are laid out for
  std::vector<Cache> caches_;
  std::vector<std::uint8_t> zeros_;       // of one cache, where caches are not in host memory
  std::map<Inputs, StepBuffers> buffers_; // with masks for all slots, of which a call has those that it is given
  std::map<Shape, Bound> bound_;
};

} // namespace arforge
