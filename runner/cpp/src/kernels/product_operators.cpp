#include "kernels/product_operators.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/operator_base.h"
#include "kernels/products.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace arforge::kernels {
namespace {

constexpr std::size_t MOST_AXES = 8;
constexpr std::size_t ALONE = 16384; // numbers that one thread rounds sooner than several are told to
constexpr std::size_t PARTS = 16;    // that the threads take as they get done

// Lets the system have the pages of what was read, most of them a file's, which nothing reads again.
void not_needed(const std::uint8_t* data, std::size_t bytes) noexcept {
#ifdef MADV_PAGEOUT
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t before = (page - reinterpret_cast<std::uintptr_t>(data) % page) % page;
  if (bytes >= before + page) { // what is not supported costs nothing
    (void)madvise(const_cast<std::uint8_t*>(data) + before, (bytes - before) / page * page, MADV_PAGEOUT);
  }
#else
  (void)data;
  (void)bytes;
#endif
}

// The stored matrix whose codes and scales are two inputs from `first` on. Throws Ort::Exception where it is none.
Matrix read_matrix(const Ort::ConstKernelInfo& info, std::size_t first) {
  const auto number = [&](const char* name) { return info.GetAttribute<std::int64_t>(name); };
  const auto size = [&](const char* name) { return static_cast<std::size_t>(number(name)); };
  const Shape shape = {size("K"), size("N"), size("block_size"), static_cast<int>(number("bits"))};
  int codes_stored = 0, scales_stored = 0;
  const Ort::ConstValue codes = info.GetTensorConstantInput(first, &codes_stored);
  const Ort::ConstValue scales = info.GetTensorConstantInput(first + 1, &scales_stored);
  if (!shape.sound() || codes_stored == 0 || scales_stored == 0) {
    throw Ort::Exception("not a product that the kernels know", ORT_INVALID_GRAPH);
  }
  const std::size_t blocks = shape.outputs * shape.blocks();
  const std::size_t bytes = blocks * shape.block * static_cast<std::size_t>(shape.bits) / 8;
  if (codes.GetTensorTypeAndShapeInfo().GetElementCount() != bytes ||
      scales.GetTensorTypeAndShapeInfo().GetElementCount() != blocks) {
    throw Ort::Exception("codes or scales of another shape than the attributes say", ORT_INVALID_GRAPH);
  }
  Matrix made(shape, codes.GetTensorData<std::uint8_t>(), scales.GetTensorData<float>());
  not_needed(codes.GetTensorData<std::uint8_t>(), bytes);
  return made;
}

struct Work {
  const Matrix& matrix;
  const Matrix* gated; // by the first's results
  Rows& rows;
  const float* numbers;
  float* result;
};

void round(void* work, std::size_t row) noexcept {
  const Work& one = *static_cast<Work*>(work);
  one.rows.round(row, one.numbers + row * one.matrix.shape().inputs, one.matrix.shape());
}

void multiply(void* work, std::size_t panel) noexcept {
  const Work& one = *static_cast<Work*>(work);
  const std::size_t outputs = one.matrix.shape().outputs, first = panel * COLUMNS, rows = one.rows.count();
  one.matrix.multiply(one.rows, panel, one.result + first, outputs);
  if (one.gated == nullptr) {
    return;
  }
  thread_local std::vector<float> others;
  others.resize(rows * COLUMNS);
  one.gated->multiply(one.rows, panel, others.data(), COLUMNS);
  for (std::size_t row = 0; row < rows; row++) {
    chosen()->in_float.gate(one.result + row * outputs + first, others.data() + row * COLUMNS,
                            std::min(COLUMNS, outputs - first));
  }
}

// A product with one stored matrix, or, GATED, with two: silu(x A) * (x B). Calls may come from several threads.
template <bool GATED>
class Product {
public:
  explicit Product(const OrtKernelInfo* raw) {
    const Ort::ConstKernelInfo info(raw);
    for (std::size_t first = 1; first <= (GATED ? 3 : 1); first += 2) {
      matrices_.push_back(read_matrix(info, first));
    }
  }

  void compute(const Ort::KernelContext& context) const {
    const Matrix& matrix = matrices_.front();
    const Shape& shape = matrix.shape();
    const Ort::ConstValue input = context.GetInput(0);
    std::array<std::int64_t, MOST_AXES> sizes{};
    const auto facts = input.GetTensorTypeAndShapeInfo();
    const std::size_t axes = facts.GetDimensionsCount();
    if (axes == 0 || axes > MOST_AXES) {
      throw Ort::Exception("rows of another shape than the kernels know", ORT_INVALID_ARGUMENT);
    }
    facts.GetDimensions(sizes.data(), axes);
    if (sizes[axes - 1] != static_cast<std::int64_t>(shape.inputs)) {
      throw Ort::Exception("rows of another size than the matrix takes", ORT_INVALID_ARGUMENT);
    }
    sizes[axes - 1] = static_cast<std::int64_t>(shape.outputs);
    const std::size_t count = facts.GetElementCount() / shape.inputs;
    thread_local Rows rows;
    Work work = {matrix, GATED ? &matrices_.back() : nullptr, rows, input.GetTensorData<float>(),
                 context.GetOutput(0, sizes.data(), axes).GetTensorMutableData<float>()};
    if (count == 0) {
      return;
    }
    rows.resize(count, shape);
    if (count * shape.inputs <= ALONE) {
      for (std::size_t row = 0; row < count; row++) {
        round(&work, row);
      }
    } else {
      context.ParallelFor(round, count, std::min(count, PARTS), &work);
    }
    context.ParallelFor(multiply, matrix.panels(), std::min(matrix.panels(), PARTS), &work);
  }

private:
  std::vector<Matrix> matrices_;
};

template <bool GATED>
struct ProductOperator : OperatorBase<ProductOperator<GATED>, Product<GATED>> {
  const char* GetName() const noexcept { return GATED ? "GatedProduct" : "MatMulBlock"; }
  std::size_t GetInputTypeCount() const noexcept { return GATED ? 5 : 3; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const noexcept {
    return index % 2 == 1 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  std::size_t GetOutputTypeCount() const noexcept { return 1; }
  ONNXTensorElementDataType GetOutputType(std::size_t /*index*/) const noexcept {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
};

} // namespace

const OrtCustomOp* product_operator() {
  static const ProductOperator<false> OPERATOR;
  return &OPERATOR;
}

const OrtCustomOp* gated_operator() {
  static const ProductOperator<true> OPERATOR;
  return &OPERATOR;
}

} // namespace arforge::kernels
