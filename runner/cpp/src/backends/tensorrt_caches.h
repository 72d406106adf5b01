// The caches of a TensorRT engine: keys and values in device memory, for the largest batch, each at one address.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backends/cuda.h"
#include "backends/engine.h"
#include "backends/tensorrt_program.h"
#include "bundle/tensorrt_identity.h"

namespace arforge {

// Each is (rows, kv_heads, slots, head_size), of the rows of the programs that run; or, where attention reads them by
// views at the same addresses, (slots, rows, kv_heads, head_size).
class TensorRTCaches {
public:
  // `rows`: of the largest batch. Those that an engine only reads lie in one block. Throws Error (engine) if there is
  // no memory for them.
  TensorRTCaches(Gpu& gpu, const ModelFacts& model, const TensorRTIdentity& identity, std::int64_t rows);

  // Where programs find each, and write it, by the names of inputs and outputs.
  [[nodiscard]] Places places() const;
  [[nodiscard]] const std::vector<std::string>& names() const { return names_; }

  [[nodiscard]] const Planes& planes() const { return planes_; } // of caches that lie together, a line a head
  [[nodiscard]] std::size_t kv_heads() const { return kv_heads_; }
  [[nodiscard]] std::size_t slot_bytes() const { return slot_bytes_; } // of a head

  // Queues zeros into the first slots of so many rows, which are all of the programs that run; or into everything.
  void clear(std::int64_t slots, std::int64_t rows);
  void clear();

  // Slots of one of `rows` rows, from `first` on, as they lie in memory. Writing is queued: the content must stay until
  // the GPU is waited for.
  [[nodiscard]] CacheContent read(std::int64_t row, std::int64_t rows, std::int64_t first, std::int64_t count);
  void write(std::int64_t row, std::int64_t rows, std::int64_t first, const CacheContent& content);

private:
  // Runs of bytes that lie `pitch` apart.
  struct Runs {
    std::size_t offset, pitch, width, count;
  };

  [[nodiscard]] Runs runs(std::int64_t row, std::int64_t rows, std::int64_t first, std::int64_t count) const;

  Gpu& gpu_;
  bool slots_first_;
  std::size_t kv_heads_;
  std::int64_t slots_, rows_;
  std::size_t slot_bytes_, head_bytes_; // of a head: one slot, and all
  std::vector<std::string> names_;
  std::vector<std::uint8_t*> addresses_;
  Planes planes_;
};

} // namespace arforge
