// Attention of one head of keys over its cache, as an instruction set does it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace arforge::kernels {

constexpr std::size_t SIXTEEN = 16; // slots, and numbers of a head, that are worked on at once

// How a vector is turned by its position; without cosines not at all.
struct Turns {
  const float* cosines = nullptr; // [positions, pairs]
  const float* sines = nullptr;
  std::size_t pairs = 0;   // of the first 2 * pairs numbers of a head
  bool neighbours = false; // numbers 2n and 2n + 1 are a pair, else n and n + pairs
};

// Vectors of tokens in memory, one `stride` numbers behind the other, and the positions that they are turned by.
struct Vectors {
  const float* first = nullptr;
  std::size_t count = 0, stride = 0;
  const std::int64_t* positions = nullptr;
};

inline std::size_t filled_up(std::size_t count) noexcept { return (count + SIXTEEN - 1) / SIXTEEN * SIXTEEN; }

// Memory of a thread for so many queries at once, those of a token together; a head has `wide` numbers, filled up.
struct Bench {
  std::size_t rows;
  float* queries;  // [rows, wide], scaled
  float* scores;   // [rows, slots, filled up]
  float* turned;   // [wide, SIXTEEN]: numbers of 16 slots
  float* attended; // [rows, wide]
  float* totals;   // [rows]
};

// A row of a batch and a head of its keys, with all heads of queries that read it.
struct Head {
  Vectors queries; // of the first head; the next lie behind it
  std::size_t group;
  float scale;
  Vectors keys, values; // that the step writes; of none, nothing is written
  Turns turns;
  void* key_cache; // [slots, size]
  void* value_cache;
  const float* key_scales; // [size], of a cache of int8
  const float* value_scales;
  std::size_t size, first, used; // the first slot that is written, and how many are read
  const std::uint8_t* mask;      // [queries.count, slots]: whether a query sees a slot
  std::size_t slots;
  float* result; // of the first query, the next `result_stride` behind it
  std::size_t result_stride;
};

// What an instruction set does in float32.
struct InFloat {
  // By the caches' type: writes what is new and attends to what is there.
  void (*attend_floats)(const Head& head, const Bench& bench);
  void (*attend_codes)(const Head& head, const Bench& bench);
  // Numbers become silu(number) * other: number / (1 + e^-number) * other.
  void (*gate)(float* numbers, const float* others, std::size_t count);
};

InFloat in_float_avx512() noexcept;
InFloat in_float_avx2() noexcept;

} // namespace arforge::kernels
