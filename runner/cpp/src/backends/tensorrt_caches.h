// The caches of a TensorRT engine: keys and values in device memory, for the largest batch, each at one address.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backends/cuda.h"
#include "backends/engine.h"
#include "backends/tensorrt_program.h"

namespace arforge {

// Each is (rows, kv_heads, slots, head_size), of the rows of the programs that run.
class TensorRTCaches {
public:
  // `rows`: of the largest batch; `together`: in one block. Throws Error (engine) if there is no memory for them.
  TensorRTCaches(Gpu& gpu, const ModelFacts& model, Type type, std::int64_t slots, std::int64_t rows, bool together);

  // Where programs find each, and write it, by the names of inputs and outputs.
  [[nodiscard]] Places places() const;
  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }

  [[nodiscard]] const Planes& planes() const { return planes_; } // of caches that lie together, a line a head
  [[nodiscard]] std::size_t kv_heads() const { return kv_heads_; }
  [[nodiscard]] std::size_t slot_bytes() const { return slot_bytes_; } // of a head

  // Queues zeros into the first slots of the first rows; or into all of them.
  void clear(std::int64_t slots, std::int64_t rows);
  void clear();

  // Slots of one row, from `first` on. Writing is queued: the content must stay until the GPU is waited for.
  [[nodiscard]] CacheContent read(std::int64_t row, std::int64_t first, std::int64_t count);
  void write(std::int64_t row, std::int64_t first, const CacheContent& content);

private:
  [[nodiscard]] std::uint8_t* address(std::size_t cache, std::int64_t row, std::int64_t slot) const;

  Gpu& gpu_;
  std::size_t kv_heads_;
  std::int64_t slots_, rows_;
  std::size_t slot_bytes_, head_bytes_; // of a head: one slot, and all
  std::vector<std::string> names_;
  std::vector<std::uint8_t*> addresses_;
  Planes planes_;
};

} // namespace arforge
