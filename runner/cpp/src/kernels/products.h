// Products of float32 rows with a stored matrix in blocks of 8 or 4 bits, for x86-64 with AVX-512 VNNI or AVX-VNNI.
//
// The matrix is that of ONNX Runtime's MatMulNBits: `block` inputs of an output share a scale, codes are unsigned
// around a zero point in the middle. A row is rounded to int8 block by block, by its largest absolute value / 127; sums
// within a block are whole numbers, and blocks add up in their order. So a row's results have the same bits in any
// company.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/instructions.h"

namespace arforge::kernels {

struct Shape {
  std::size_t inputs, outputs, block;
  int bits; // 8 or 4

  std::size_t blocks() const noexcept { return (inputs + block - 1) / block; }
  bool sound() const noexcept; // whether the kernels know it
};

// Rows as they are multiplied; kept by a thread and used again.
class Rows {
public:
  void resize(std::size_t rows, const Shape& shape);
  std::size_t count() const noexcept { return rows_; }
  // Rounds one row of `inputs` numbers. Different rows may be rounded at the same time.
  void round(std::size_t row, const float* numbers, const Shape& shape) noexcept;

private:
  friend class Matrix;
  std::size_t rows_ = 0, room_ = 0, block_room_ = 0;
  Aligned<std::int8_t> codes_; // [rows, blocks * block]
  Aligned<float> scales_;      // [rows, blocks]
  Aligned<std::int32_t> sums_; // [rows, blocks]: of the codes, times the zero point, negative
};

class Matrix {
public:
  // `codes`: [outputs, blocks, block * bits / 8] bytes; `scales`: [outputs, blocks].
  Matrix(const Shape& shape, const std::uint8_t* codes, const float* scales);

  const Shape& shape() const noexcept { return shape_; }
  std::size_t panels() const noexcept { return (shape_.outputs + COLUMNS - 1) / COLUMNS; }
  // The panel's outputs of all rows, into `result`, a row `stride` numbers behind the other.
  void multiply(const Rows& rows, std::size_t panel, float* result, std::size_t stride) const noexcept;

private:
  Shape shape_;
  Aligned<std::uint8_t> codes_; // by panel, as a Part has them
  Aligned<float> scales_;
};

} // namespace arforge::kernels
