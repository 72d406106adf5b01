#include "kernels/products.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace arforge::kernels {
namespace {

// Puts an output's quads of codes into lines of `stride` bytes.
void put_bytes(const std::uint8_t* codes, std::size_t quads, std::uint8_t* target, std::size_t stride) {
  for (std::size_t quad = 0; quad < quads; quad++) {
    std::memcpy(target + quad * stride, codes + quad * QUAD, QUAD);
  }
}

// The same of codes of 4 bits, of which an even input's is low in its byte; two quads go into a line.
void put_halves(const std::uint8_t* codes, std::size_t quads, std::uint8_t* target, std::size_t stride) {
  for (std::size_t pair = 0; pair < quads / 2; pair++) {
    for (std::size_t input = 0; input < QUAD; input++) {
      const auto code = [&](std::size_t at) { return at % 2 == 0 ? codes[at / 2] & 15 : codes[at / 2] >> 4; };
      const std::size_t even = 2 * pair * QUAD + input;
      target[pair * stride + input] = static_cast<std::uint8_t>(code(even) | code(even + QUAD) << 4);
    }
  }
}

} // namespace

bool Shape::sound() const noexcept {
  constexpr std::size_t MOST = std::size_t{1} << 30; // of each, so that no product of sizes overflows
  return inputs > 0 && inputs <= MOST && outputs > 0 && outputs <= MOST && (bits == 8 || bits == 4) && block >= 16 &&
         block <= LARGEST_BLOCK && block % 16 == 0;
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
    if (count == shape.block) {
      sums_[place] = -zero * chosen()->round(numbers + first, count, codes, scales_[place]);
      continue;
    }
    std::array<float, LARGEST_BLOCK> filled{};
    std::copy(numbers + first, numbers + first + count, filled.begin());
    sums_[place] = -zero * chosen()->round(filled.data(), shape.block, codes, scales_[place]);
  }
}

Matrix::Matrix(const Shape& shape, const std::uint8_t* codes, const float* scales) : shape_(shape) {
  const std::size_t blocks = shape.blocks(), inputs = blocks * shape.block, bits = static_cast<std::size_t>(shape.bits);
  const std::size_t width = chosen()->width, group_bytes = inputs * width * bits / 8;
  codes_ = aligned<std::uint8_t>(panels() * COLUMNS / width * group_bytes);
  scales_ = aligned<float>(panels() * blocks * COLUMNS);
  for (std::size_t output = 0; output < shape.outputs; output++) {
    std::uint8_t* const target = codes_.get() + output / width * group_bytes + output % width * QUAD;
    const std::uint8_t* const source = codes + output * inputs * bits / 8;
    shape.bits == 8 ? put_bytes(source, inputs / QUAD, target, width * QUAD)
                    : put_halves(source, inputs / QUAD, target, width * QUAD);
    for (std::size_t block = 0; block < blocks; block++) {
      const std::size_t place = output / COLUMNS * blocks + block;
      scales_[place * COLUMNS + output % COLUMNS] = scales[output * blocks + block];
    }
  }
}

void Matrix::multiply(const Rows& rows, std::size_t panel, float* result, std::size_t stride) const noexcept {
  const std::size_t blocks = shape_.blocks(), inputs = blocks * shape_.block;
  const std::size_t panel_bytes = inputs * COLUMNS * static_cast<std::size_t>(shape_.bits) / 8;
  const std::size_t most = chosen()->most_rows, parts = (rows.rows_ + most - 1) / most;
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
                      stride,
                      std::min(COLUMNS, shape_.outputs - panel * COLUMNS),
                      result + first * stride,
                      shape_.bits};
    chosen()->multiply(one, end - first);
  }
}

} // namespace arforge::kernels
