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
#include "backends/onnxruntime_session.h"
#include "bundle/bundle.h"
#include "step_graph.h"

namespace arforge {

// What slots of a row hold, one array a cache: (kv_heads, slots, head_size).
using CacheContent = std::vector<std::vector<std::uint8_t>>;

class Engine {
public:
  // Throws Error (engine) if ONNX Runtime, the provider or the graph does not fit.
  Engine(const Bundle& bundle, const EngineIdentity& identity, const Options& options);

  [[nodiscard]] const std::vector<std::int64_t>& widths() const { return widths_; }
  // The widest step in which a token gets the bits that it gets alone; 0 where that is not known.
  [[nodiscard]] std::int64_t exact_width() const { return exact_width_; }
  [[nodiscard]] std::int64_t growth() const { return device_ == nullptr ? 64 : 0; } // of the slots that are bound

  // Makes caches and buffers ready for steps of these shapes, the first `zero_slots` slots zero: nothing is allocated
  // after it, but for binding the memory of a width to a number of slots that is not among them. The first step has the
  // first shape. `lockstep`: all rows write to the same slots in each step.
  void prepare(const Extent& extent, const std::vector<Shape>& shapes, std::int64_t zero_slots, bool lockstep);

  // The memory of one kind of step, whose width and queries were prepared for.
  StepBuffers& buffers(const Shape& shape);

  // Forgets what the caches hold: NaN in a slot that no mask lets through would still reach the next request.
  void clear();

  // Executes one step of that shape from its buffers.
  void run(const Shape& shape, bool first);

  // Caches of one row from slot `first` on; what is written must lie in slots that were prepared as zero slots.
  [[nodiscard]] CacheContent read_cache(std::int64_t row, std::int64_t first, std::int64_t count);
  void write_cache(std::int64_t row, std::int64_t first, const CacheContent& content);

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
  void choose_graph(std::int64_t rows, std::int64_t lockstep_width);
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
  std::vector<std::int64_t> widths_;
  std::int64_t exact_width_;
  Contract contract_;
  Ort::Env env_;
  Ort::Session session_{nullptr};
  std::int64_t folded_rows_ = 0; // that the open graph is folded for; 0: it is the plain one
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
