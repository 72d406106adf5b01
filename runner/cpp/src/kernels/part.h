// The parts of a product and of attention that a processor's instructions do, and which of them there are.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/head.h"

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : defined(__GNUC__) && __GNUC__ >= 11)
#define ARFORGE_VNNI 1 // functions that use it are marked, so that all else runs on any x86-64
#else
#define ARFORGE_VNNI 0
#endif
#ifdef __clang__
#define ARFORGE_UNROLL _Pragma("unroll")
#define ARFORGE_UNROLL_ALL _Pragma("unroll")
#else
#define ARFORGE_UNROLL _Pragma("GCC unroll 8")
#define ARFORGE_UNROLL_ALL _Pragma("GCC unroll 16")
#endif

namespace arforge::kernels {

constexpr std::size_t LINE = 64;    // bytes of a cache line
constexpr std::size_t QUAD = 4;     // inputs that one instruction adds up
constexpr std::size_t COLUMNS = 64; // outputs of a panel
constexpr std::size_t LARGEST_BLOCK = 256;

// Rows by a panel of a matrix.
struct Part {
  const std::uint8_t* codes; // [groups, quads, width, QUAD]; of 4 bits, two quads share bytes, the even one low
  const float* scales;       // [blocks, COLUMNS]
  const std::int8_t* rows;   // [rows, inputs], and of each row and block its scale and its sum
  const float* row_scales;
  const std::int32_t* row_sums;
  std::size_t inputs, blocks, block; // `inputs` filled up to whole blocks
  std::size_t outputs, columns;      // of a row of results, and those of the panel that there are
  float* result;
  int bits;
};

struct Instructions {
  const char* name;
  std::size_t width;     // outputs at once, a group
  std::size_t most_rows; // at once
  void (*multiply)(const Part& part, std::size_t rows);
  // Rounds a block of numbers, as many as a multiple of 16, to codes. Returns their sum.
  std::int32_t (*round)(const float* numbers, std::size_t count, std::int8_t* codes, float& scale);
  InFloat in_float;
};

// Null where this processor, or this compiler, does not have them.
const Instructions* avx512() noexcept;
const Instructions* avx_vnni() noexcept;

} // namespace arforge::kernels
