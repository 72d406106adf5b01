// Attention of a step over the caches of one layer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/head.h"

namespace arforge::kernels {

// What a layer says of itself.
struct Layer {
  std::size_t heads, kv_heads, size, query_offset, key_offset, value_offset;
  bool neighbours;
  float scale;
};

// The tensors of a step, and what is known of them.
struct Step {
  const Layer& layer;
  std::size_t rows, slots, table = 0;
  Vectors queries, keys, values; // of the first row, and its first head
  Turns turns;
  const std::int64_t* write_index = nullptr;
  const std::uint8_t* mask;
  std::uint8_t *key_cache, *value_cache;
  std::size_t number_bytes;
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
  float* result;
  const std::size_t* used; // [rows]
};

// The slots up to the last one that a query of a row sees. `mask`: [queries, slots].
std::size_t used_slots(const std::uint8_t* mask, std::size_t queries, std::size_t slots) noexcept;

// One of a step's rows * kv_heads parts, which may run at the same time. `step` is a Step.
void attend(void* step, std::size_t index) noexcept;

} // namespace arforge::kernels
