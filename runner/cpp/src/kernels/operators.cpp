#include "kernels/operators.h"

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <string_view>

#include "kernels/attention_operator.h"
#include "kernels/products.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace arforge::kernels {
namespace {

constexpr const char* NAME = "MatMulBlock";
constexpr std::string_view THEIRS = "\x22\x0bMatMulNBits"; // a node's field 4, its length, and the operator's name
constexpr std::string_view OURS = "\x22\x0bMatMulBlock";
static_assert(OURS.size() == THEIRS.size()); // so nothing else of the file moves
constexpr std::string_view OWN = "\x3a\x07" "arforge"; // a node's field 7, its length, and the operator's domain
constexpr const char* DOMAIN_NAME = "com.microsoft";
constexpr const char* OWN_DOMAIN = "arforge"; // of operators that a graph names itself
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

// A product with one stored matrix. Calls may come from several threads.
class Product {
public:
  explicit Product(const OrtKernelInfo* info) : Product(Ort::ConstKernelInfo(info)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) noexcept {
    try {
      compute(Ort::KernelContext(raw));
      return nullptr;
    } catch (const std::exception& error) {
      return Ort::Status(error.what(), ORT_FAIL).release();
    }
  }

private:
  explicit Product(const Ort::ConstKernelInfo& info) : matrix_(read(info)) {}

  static Matrix read(const Ort::ConstKernelInfo& info) {
    const auto number = [&](const char* name) { return info.GetAttribute<std::int64_t>(name); };
    const auto size = [&](const char* name) { return static_cast<std::size_t>(number(name)); };
    const Shape shape = {size("K"), size("N"), size("block_size"), static_cast<int>(number("bits"))};
    int codes_stored = 0, scales_stored = 0;
    const Ort::ConstValue codes = info.GetTensorConstantInput(1, &codes_stored);
    const Ort::ConstValue scales = info.GetTensorConstantInput(2, &scales_stored);
    if (!shape.sound() || codes_stored == 0 || scales_stored == 0) {
      throw Ort::Exception("not a product that the kernels know", ORT_INVALID_GRAPH);
    }
    const std::size_t blocks = shape.outputs * shape.blocks();
    if (codes.GetTensorTypeAndShapeInfo().GetElementCount() !=
            blocks * shape.block * static_cast<std::size_t>(shape.bits) / 8 ||
        scales.GetTensorTypeAndShapeInfo().GetElementCount() != blocks) {
      throw Ort::Exception("codes or scales of another shape than the attributes say", ORT_INVALID_GRAPH);
    }
    const std::size_t bytes = blocks * shape.block * static_cast<std::size_t>(shape.bits) / 8;
    Matrix made(shape, codes.GetTensorData<std::uint8_t>(), scales.GetTensorData<float>());
    not_needed(codes.GetTensorData<std::uint8_t>(), bytes);
    return made;
  }

  void compute(const Ort::KernelContext& context) const {
    const Shape& shape = matrix_.shape();
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
    Work work = {matrix_, rows, input.GetTensorData<float>(),
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
    context.ParallelFor(multiply, matrix_.panels(), std::min(matrix_.panels(), PARTS), &work);
  }

  struct Work {
    const Matrix& matrix;
    Rows& rows;
    const float* numbers;
    float* result;
  };

  static void round(void* work, std::size_t row) noexcept {
    const Work& one = *static_cast<Work*>(work);
    one.rows.round(row, one.numbers + row * one.matrix.shape().inputs, one.matrix.shape());
  }

  static void multiply(void* work, std::size_t panel) noexcept {
    const Work& one = *static_cast<Work*>(work);
    one.matrix.multiply(one.rows, panel, one.result);
  }

  Matrix matrix_;
};

struct ProductOperator : Ort::CustomOpBase<ProductOperator, Product, true> {
  OrtStatusPtr CreateKernelV2(const OrtApi& /*api*/, const OrtKernelInfo* info, void** kernel) const noexcept {
    try {
      *kernel = new Product(info);
      return nullptr;
    } catch (const std::exception& error) {
      return Ort::Status(error.what(), ORT_FAIL).release();
    }
  }
  const char* GetName() const noexcept { return NAME; }
  std::size_t GetInputTypeCount() const noexcept { return 3; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const noexcept {
    return index == 1 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  std::size_t GetOutputTypeCount() const noexcept { return 1; }
  ONNXTensorElementDataType GetOutputType(std::size_t /*index*/) const noexcept {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
};

} // namespace

void add_operators(OrtSessionOptions* options) {
  static const ProductOperator OPERATOR;
  static Ort::CustomOpDomain& domain = *[] { // not destroyed at the process's end, when the library may be gone
    auto made = std::make_unique<Ort::CustomOpDomain>(DOMAIN_NAME);
    made->Add(&OPERATOR);
    return made.release();
  }();
  static Ort::CustomOpDomain& own = *[] {
    auto made = std::make_unique<Ort::CustomOpDomain>(OWN_DOMAIN);
    for (const OrtCustomOp* one : attention_operators()) {
      made->Add(one);
    }
    return made.release();
  }();
  for (Ort::CustomOpDomain* const one : {&domain, &own}) { // of many sessions, so no owner but this
    Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, *one));
  }
}

bool name_operators(std::string& graph) {
  bool found = graph.find(OWN) != std::string::npos;
  for (std::size_t at = graph.find(THEIRS); at != std::string::npos; at = graph.find(THEIRS, at + OURS.size())) {
    graph.replace(at, OURS.size(), OURS);
    found = true;
  }
  return found;
}

} // namespace arforge::kernels
