#include "kernels/draw_operator.h"

#include <algorithm>
#include <vector>

#include "kernels/operator_base.h"

namespace arforge::kernels {
namespace {

struct Draws {
  const float* probabilities; // [draws, choices]
  const float* numbers;
  std::size_t choices;
  std::int64_t* result;
};

void draw(void* work, std::size_t index) noexcept {
  const Draws& draws = *static_cast<Draws*>(work);
  thread_local std::vector<float> sums;
  sums.resize(draws.choices);
  float sum = 0;
  const float* const each = draws.probabilities + index * draws.choices;
  for (std::size_t choice = 0; choice < draws.choices; choice++) {
    sum += each[choice];
    sums[choice] = sum;
  }
  const float bound = draws.numbers[index] * sum;
  std::int64_t count = 0; // not by halves, as NaN has no place among numbers
  for (const float one : sums) {
    count += one <= bound ? 1 : 0;
  }
  draws.result[index] = count;
}

class Draw {
public:
  explicit Draw(const OrtKernelInfo* /*info*/) {}

  static void compute(const Ort::KernelContext& context) {
    const Ort::ConstValue probabilities = context.GetInput(0), numbers = context.GetInput(1);
    const std::vector<std::int64_t> shape = numbers.GetTensorTypeAndShapeInfo().GetShape();
    std::vector<std::int64_t> wanted = probabilities.GetTensorTypeAndShapeInfo().GetShape();
    const std::int64_t choices = wanted.empty() ? 0 : wanted.back();
    if (wanted.empty() || (wanted.pop_back(), wanted != shape)) {
      throw Ort::Exception("numbers to draw by of another shape than the probabilities", ORT_INVALID_ARGUMENT);
    }
    Draws draws = {probabilities.GetTensorData<float>(), numbers.GetTensorData<float>(),
                   static_cast<std::size_t>(choices),
                   context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<std::int64_t>()};
    const std::size_t count = numbers.GetTensorTypeAndShapeInfo().GetElementCount();
    if (count > 0) {
      context.ParallelFor(draw, count, count, &draws);
    }
  }
};

struct DrawOperator : OperatorBase<DrawOperator, Draw> {
  const char* GetName() const noexcept { return "Draw"; }
  std::size_t GetInputTypeCount() const noexcept { return 2; }
  ONNXTensorElementDataType GetInputType(std::size_t /*index*/) const noexcept {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  std::size_t GetOutputTypeCount() const noexcept { return 1; }
  ONNXTensorElementDataType GetOutputType(std::size_t /*index*/) const noexcept {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  }
};

} // namespace

const OrtCustomOp* draw_operator() {
  static const DrawOperator OPERATOR;
  return &OPERATOR;
}

} // namespace arforge::kernels
