#include "kernels/products.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "kernels/avx512.h"

namespace arforge::kernels {
namespace {

constexpr std::size_t LINE = 64;  // bytes of a register, and of a cache line
constexpr std::size_t LANES = 16; // outputs of a register
constexpr std::size_t QUAD = 4;   // inputs that one instruction adds up
constexpr std::size_t TILES = Matrix::COLUMNS / LANES;
constexpr std::size_t MOST_ROWS = 6; // at once: sums of 6 x 4 registers, and 8 registers for the rest
constexpr float STEPS = 127;

std::size_t rounded(std::size_t count, std::size_t unit) { return (count + unit - 1) / unit * unit; }

// A part of a product: `ROWS` rows by a panel.
struct Part {
  const std::uint8_t* codes;
  const float* scales;
  const std::int8_t* rows; // and, of each block, their scales and sums
  const float* row_scales;
  const std::int32_t* row_sums;
  std::size_t inputs, blocks, block; // `inputs` filled up to whole blocks
  std::size_t outputs, columns;      // of a row of results, and those of the panel
  float* result;
};

#if ARFORGE_AVX512

template <int BITS>
ARFORGE_TARGET inline void unpack(const std::uint8_t* codes, std::size_t quad, __m512i* registers) {
  if constexpr (BITS == 8) {
    ARFORGE_UNROLL
    for (std::size_t tile = 0; tile < TILES; tile++) {
      registers[tile] = _mm512_load_si512(codes + (quad * TILES + tile) * LINE);
    }
  } else { // two quads share a register's bytes
    const __m512i low = _mm512_set1_epi8(15);
    ARFORGE_UNROLL
    for (std::size_t tile = 0; tile < TILES; tile++) {
      const __m512i both = _mm512_load_si512(codes + (quad / 2 * TILES + tile) * LINE);
      registers[tile] = _mm512_and_si512(quad % 2 == 0 ? both : _mm512_srli_epi16(both, 4), low);
    }
  }
}

// Sums of whole numbers of one block, into [ROWS, COLUMNS]. Not inlined, so that its sums alone fill the registers.
template <int BITS, std::size_t ROWS>
ARFORGE_TARGET ARFORGE_APART void sum_block(const Part& part, std::size_t block, std::int32_t* result) {
  __m512i sums[ROWS][TILES];
  ARFORGE_UNROLL
  for (std::size_t row = 0; row < ROWS; row++) {
    ARFORGE_UNROLL
    for (std::size_t tile = 0; tile < TILES; tile++) {
      sums[row][tile] = _mm512_set1_epi32(part.row_sums[row * part.blocks + block]);
    }
  }
  const std::size_t inputs = part.inputs, quads = part.block / QUAD, end = (block + 1) * quads;
  const std::int8_t* const rows = part.rows;
  const std::uint8_t* const codes = part.codes;
  for (std::size_t quad = block * quads; quad < end; quad++) {
    __m512i weights[TILES];
    unpack<BITS>(codes, quad, weights);
    ARFORGE_UNROLL
    for (std::size_t row = 0; row < ROWS; row++) {
      std::int32_t four = 0;
      std::memcpy(&four, rows + row * inputs + quad * QUAD, sizeof four);
      const __m512i numbers = _mm512_set1_epi32(four);
      ARFORGE_UNROLL
      for (std::size_t tile = 0; tile < TILES; tile++) {
        sums[row][tile] = _mm512_dpbusd_epi32(sums[row][tile], weights[tile], numbers);
      }
    }
  }
  ARFORGE_UNROLL
  for (std::size_t row = 0; row < ROWS; row++) {
    ARFORGE_UNROLL
    for (std::size_t tile = 0; tile < TILES; tile++) {
      _mm512_store_si512(result + (row * TILES + tile) * LANES, sums[row][tile]);
    }
  }
}

template <int BITS, std::size_t ROWS>
ARFORGE_TARGET void multiply_rows(const Part& part) {
  alignas(LINE) std::int32_t sums[ROWS * Matrix::COLUMNS];
  alignas(LINE) float totals[ROWS * Matrix::COLUMNS] = {};
  for (std::size_t block = 0; block < part.blocks; block++) {
    sum_block<BITS, ROWS>(part, block, sums);
    for (std::size_t tile = 0; tile < TILES; tile++) {
      const __m512 scale = _mm512_load_ps(part.scales + (block * TILES + tile) * LANES);
      for (std::size_t row = 0; row < ROWS; row++) {
        const std::size_t place = (row * TILES + tile) * LANES;
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(part.row_scales[row * part.blocks + block]));
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + place));
        _mm512_store_ps(totals + place, _mm512_fmadd_ps(sum, both, _mm512_load_ps(totals + place)));
      }
    }
  }
  for (std::size_t row = 0; row < ROWS; row++) {
    for (std::size_t tile = 0; tile * LANES < part.columns; tile++) {
      const std::size_t left = std::min(part.columns - tile * LANES, LANES);
      const auto kept = static_cast<__mmask16>((1U << left) - 1);
      const __m512 total = _mm512_load_ps(totals + (row * TILES + tile) * LANES);
      _mm512_mask_storeu_ps(part.result + row * part.outputs + tile * LANES, kept, total);
    }
  }
}

template <int BITS>
void multiply_part(const Part& part, std::size_t rows) {
  using Kernel = void (*)(const Part&);
  constexpr Kernel KERNELS[MOST_ROWS] = {multiply_rows<BITS, 1>, multiply_rows<BITS, 2>, multiply_rows<BITS, 3>,
                                         multiply_rows<BITS, 4>, multiply_rows<BITS, 5>, multiply_rows<BITS, 6>};
  KERNELS[rows - 1](part);
}

// Rounds a block of `count` numbers. Returns the sum of the codes.
ARFORGE_TARGET std::int32_t round_block(const float* numbers, std::size_t count, std::int8_t* codes, float& scale) {
  const auto kept = [count](std::size_t first) {
    return static_cast<__mmask16>(count - first >= LANES ? 0xffffU : (1U << (count - first)) - 1);
  };
  __m512 largest = _mm512_setzero_ps(), unsound = _mm512_setzero_ps(); // the latter NaN where a number is not finite
  for (std::size_t first = 0; first < count; first += LANES) {
    const __m512 some = _mm512_maskz_loadu_ps(kept(first), numbers + first);
    largest = _mm512_max_ps(largest, _mm512_abs_ps(some));
    unsound = _mm512_fmadd_ps(some, _mm512_setzero_ps(), unsound);
  }
  const float most = _mm512_reduce_max_ps(largest);
  scale = most / STEPS + _mm512_reduce_add_ps(unsound);
  const __m512 times = _mm512_set1_ps(most > 0 ? STEPS / most : 0);
  __m512i sum = _mm512_setzero_si512();
  for (std::size_t first = 0; first < count; first += LANES) {
    const __m512 some = _mm512_mul_ps(_mm512_maskz_loadu_ps(kept(first), numbers + first), times);
    const __m512i whole = _mm512_cvtps_epi32(some);
    sum = _mm512_add_epi32(sum, whole);
    _mm_mask_storeu_epi8(codes + first, kept(first), _mm512_cvtsepi32_epi8(whole));
  }
  return _mm512_reduce_add_epi32(sum);
}

#else

template <int BITS>
void multiply_part(const Part&, std::size_t) {}
std::int32_t round_block(const float*, std::size_t, std::int8_t*, float&) { return 0; }

#endif

} // namespace

bool supported() noexcept {
#if ARFORGE_AVX512
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

void AlignedDelete::operator()(void* memory) const noexcept { ::operator delete(memory, std::align_val_t{LINE}); }

template <typename T>
Aligned<T> aligned(std::size_t count) {
  void* memory = ::operator new(count * sizeof(T), std::align_val_t{LINE});
  std::memset(memory, 0, count * sizeof(T));
  return Aligned<T>(static_cast<T*>(memory));
}

bool Shape::sound() const noexcept {
  return inputs > 0 && outputs > 0 && (bits == 8 || bits == 4) && block >= 16 && block <= 256 && block % 16 == 0;
}

void Rows::resize(std::size_t rows, const Shape& shape) {
  const std::size_t blocks = rows * shape.blocks();
  if (blocks * shape.block > room_ || blocks > block_room_) {
    room_ = std::max(room_, blocks * shape.block);
    block_room_ = std::max(block_room_, blocks);
    codes_ = aligned<std::int8_t>(room_);
    scales_ = aligned<float>(block_room_);
    sums_ = aligned<std::int32_t>(block_room_);
  }
  rows_ = rows;
}

void Rows::round(std::size_t row, const float* numbers, const Shape& shape) noexcept {
  const std::int32_t zero = 1 << (shape.bits - 1);
  const std::size_t blocks = shape.blocks();
  for (std::size_t block = 0; block < blocks; block++) {
    const std::size_t first = block * shape.block, count = std::min(shape.block, shape.inputs - first);
    const std::size_t place = row * blocks + block;
    std::int8_t* codes = codes_.get() + place * shape.block;
    sums_[place] = -zero * round_block(numbers + first, count, codes, scales_[place]);
    std::memset(codes + count, 0, shape.block - count);
  }
}

Matrix::Matrix(const Shape& shape, const std::uint8_t* codes, const float* scales) : shape_(shape) {
  const std::size_t blocks = shape.blocks(), bytes = shape.block * static_cast<std::size_t>(shape.bits) / 8;
  const std::size_t quads = blocks * shape.block / QUAD,
                    panel_bytes = quads * QUAD * COLUMNS * static_cast<std::size_t>(shape.bits) / 8;
  codes_ = aligned<std::uint8_t>(panels() * panel_bytes);
  scales_ = aligned<float>(panels() * blocks * COLUMNS);
  for (std::size_t output = 0; output < shape.outputs; output++) {
    const std::size_t panel = output / COLUMNS, column = output % COLUMNS;
    const std::uint8_t* source = codes + output * blocks * bytes;
    std::uint8_t* target = codes_.get() + panel * panel_bytes + column * QUAD; // column / 16 registers, and in one
    for (std::size_t quad = 0; quad < quads; quad++) {
      if (shape.bits == 8) {
        std::memcpy(target + quad * COLUMNS * QUAD, source + quad * QUAD, QUAD);
        continue;
      }
      for (std::size_t input = 0; input < QUAD; input++) { // an even input's code is low in its byte
        const std::uint8_t both = source[(quad * QUAD + input) / 2];
        const int code = input % 2 == 0 ? both & 15 : both >> 4;
        std::uint8_t& place = target[quad / 2 * COLUMNS * QUAD + input];
        place = static_cast<std::uint8_t>(place | (quad % 2 == 0 ? code : code << 4));
      }
    }
    for (std::size_t block = 0; block < blocks; block++) {
      scales_[(panel * blocks + block) * COLUMNS + column] = scales[output * blocks + block];
    }
  }
}

void Matrix::multiply(const Rows& rows, std::size_t panel, float* result) const noexcept {
  const std::size_t blocks = shape_.blocks(), inputs = blocks * shape_.block;
  const std::size_t panel_bytes = inputs * COLUMNS * static_cast<std::size_t>(shape_.bits) / 8;
  const std::size_t parts = (rows.rows_ + MOST_ROWS - 1) / MOST_ROWS;
  for (std::size_t part = 0; part < parts; part++) {
    const std::size_t first = part * rows.rows_ / parts, end = (part + 1) * rows.rows_ / parts;
    const Part one = {codes_.get() + panel * panel_bytes,
                      scales_.get() + panel * blocks * COLUMNS,
                      rows.codes_.get() + first * inputs,
                      rows.scales_.get() + first * blocks,
                      rows.sums_.get() + first * blocks,
                      inputs,
                      blocks,
                      shape_.block,
                      shape_.outputs,
                      std::min(COLUMNS, shape_.outputs - panel * COLUMNS),
                      result + first * shape_.outputs + panel * COLUMNS};
    shape_.bits == 8 ? multiply_part<8>(one, end - first) : multiply_part<4>(one, end - first);
  }
}

} // namespace arforge::kernels
