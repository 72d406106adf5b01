#include "kernels/attention_operator.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/attention.h"
#include "kernels/instructions.h"
#include "kernels/operator_base.h"

namespace arforge::kernels {
namespace {

constexpr std::size_t TASKS = 64;                    // that the threads take as they get done
constexpr std::int64_t MOST = std::int64_t{1} << 20; // of a size that an attribute gives

// The operator's inputs in their order; those that a layer does without are empty.
enum Input : std::size_t {
  QUERY, // [rows, queries, ...]: of every token, heads * head_size numbers from an offset on
  KEY,   // [rows, width, ...], and the same of values; of layers that only read, neither
  VALUE,
  COSINE, // [positions, head_size / 2], of those that turn
  SINE,
  POSITIONS,       // int64 [rows, width], of keys
  QUERY_POSITIONS, // int64 [rows, queries]
  WRITE_INDEX,     // int64 [rows]
  MASK,            // bool [rows, 1, queries, slots]
  KEY_CACHE,       // [rows, kv_heads, slots, head_size]
  VALUE_CACHE,
  KEY_SCALES, // float32 [kv_heads * head_size], of caches of int8
  VALUE_SCALES,
};

bool optional(std::size_t input) noexcept { return (KEY <= input && input <= WRITE_INDEX); }

void require(bool sound, const char* what) {
  if (!sound) {
    throw Ort::Exception(std::string("attention over caches: ") + what, ORT_INVALID_ARGUMENT);
  }
}

std::vector<std::size_t> shape_of(const Ort::ConstValue& value) {
  const std::vector<std::int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
  return {shape.begin(), shape.end()};
}

class Attention {
public:
  explicit Attention(const OrtKernelInfo* raw) {
    const Ort::ConstKernelInfo info(raw);
    const auto number = [&](const char* name, std::int64_t least) {
      const auto found = info.GetAttribute<std::int64_t>(name);
      require(found >= least && found <= MOST, "an attribute is out of range");
      return static_cast<std::size_t>(found);
    };
    layer_ = {number("heads", 1),           number("kv_heads", 1),
              number("head_size", 1),       number("query_offset", 0),
              number("key_offset", 0),      number("value_offset", 0),
              number("neighbours", 0) != 0, info.GetAttribute<float>("scale")};
    require(layer_.heads % layer_.kv_heads == 0, "heads of queries that are not so many for each head of keys");
    require(chosen() != nullptr, "this processor has not the instructions");
  }

  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue mask = context.GetInput(MASK), cache = context.GetInput(KEY_CACHE);
    const std::vector<std::size_t> seen = shape_of(mask), kept = shape_of(cache);
    require(seen.size() == 4 && seen[1] == 1, "a mask that is not [rows, 1, queries, slots]");
    require(kept == std::vector<std::size_t>{seen[0], layer_.kv_heads, seen[3], layer_.size} &&
                shape_of(context.GetInput(VALUE_CACHE)) == kept,
            "a cache of another shape than the mask and the attributes say");
    Step step = {layer_, seen[0], seen[3]};
    step.mask = reinterpret_cast<const std::uint8_t*>(mask.GetTensorData<bool>());
    step.number_bytes = 4;
    if (context.GetInputCount() > KEY_SCALES) {
      step.number_bytes = 1;
      step.key_scales = scales(context.GetInput(KEY_SCALES));
      step.value_scales = scales(context.GetInput(VALUE_SCALES));
    }
    read_turns(context, step);
    const std::size_t width = layer_.heads * layer_.size;
    step.queries = vectors(context, QUERY, QUERY_POSITIONS, layer_.query_offset, width, step);
    require(step.queries.count == seen[2], "queries of another number than the mask's");
    take_caches(context, step);
    const std::array<std::int64_t, 3> shape = {static_cast<std::int64_t>(step.rows), static_cast<std::int64_t>(seen[2]),
                                               static_cast<std::int64_t>(width)};
    step.result = context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
    thread_local std::vector<std::size_t> used;
    used.resize(step.rows);
    for (std::size_t row = 0; row < step.rows; row++) {
      used[row] = used_slots(step.mask + row * seen[2] * step.slots, seen[2], step.slots);
    }
    step.used = used.data();
    const std::size_t tasks = step.rows * layer_.kv_heads;
    if (tasks > 0) {
      context.ParallelFor(attend, tasks, std::min(tasks, TASKS), &step);
    }
  }

private:
  const float* scales(const Ort::ConstValue& value) const {
    require(value.GetTensorTypeAndShapeInfo().GetElementCount() == layer_.kv_heads * layer_.size,
            "scales of another number than a cache has channels");
    return value.GetTensorData<float>();
  }

  void read_turns(const Ort::KernelContext& context, Step& step) const {
    const Ort::ConstValue cosine = context.GetInput(COSINE), sine = context.GetInput(SINE);
    if (cosine == nullptr) {
      return;
    }
    const std::vector<std::size_t> shape = shape_of(cosine);
    require(sine != nullptr && shape.size() == 2 && shape_of(sine) == shape && 2 * shape[1] == layer_.size,
            "tables of cosines and sines of another shape than the heads need");
    step.table = shape[0];
    step.turns = {cosine.GetTensorData<float>(), sine.GetTensorData<float>(), shape[1], layer_.neighbours};
  }

  // Those of an input that is there, all rows and heads, with `width` numbers from the offset on.
  static Vectors vectors(const Ort::KernelContext& context, Input input, Input positions, std::size_t offset,
                         std::size_t width, const Step& step) {
    const Ort::ConstValue value = context.GetInput(input);
    const auto facts = value.GetTensorTypeAndShapeInfo();
    const std::vector<std::size_t> shape = shape_of(value);
    require(shape.size() >= 2 && shape[0] == step.rows, "queries, keys or values of another number of rows");
    const std::size_t tokens = shape[0] * shape[1], stride = tokens == 0 ? 0 : facts.GetElementCount() / tokens;
    require(tokens == 0 || offset + width <= stride, "fewer numbers of a token than the heads need");
    Vectors found = {value.GetTensorData<float>() + offset, shape[1], stride, nullptr};
    const Ort::ConstValue places = context.GetInput(positions);
    if (step.turns.cosines != nullptr && places != nullptr) {
      require(places.GetTensorTypeAndShapeInfo().GetElementCount() == tokens, "positions of another number of tokens");
      found.positions = places.GetTensorData<std::int64_t>();
      require(std::all_of(found.positions, found.positions + tokens,
                          [&](std::int64_t one) { return one >= 0 && static_cast<std::size_t>(one) < step.table; }),
              "a position that the tables do not have");
    }
    return found;
  }

  void take_caches(const Ort::KernelContext& context, Step& step) const {
    const auto bytes = [](const Ort::ConstValue& value) {
      return static_cast<const std::uint8_t*>(value.GetTensorRawData());
    };
    const Ort::ConstValue key_cache = context.GetInput(KEY_CACHE), value_cache = context.GetInput(VALUE_CACHE);
    if (context.GetInput(KEY) == nullptr) { // nothing is written, so what is only read is as good as its own
      step.key_cache = const_cast<std::uint8_t*>(bytes(key_cache));
      step.value_cache = const_cast<std::uint8_t*>(bytes(value_cache));
      return;
    }
    const std::size_t width = layer_.kv_heads * layer_.size;
    require(context.GetInput(VALUE) != nullptr && context.GetInput(WRITE_INDEX) != nullptr,
            "keys without values or without a place for them");
    step.keys = vectors(context, KEY, POSITIONS, layer_.key_offset, width, step);
    step.values = vectors(context, VALUE, POSITIONS, layer_.value_offset, width, step);
    step.values.positions = nullptr; // which are not turned
    const Ort::ConstValue write_index = context.GetInput(WRITE_INDEX);
    require(step.values.count == step.keys.count &&
                write_index.GetTensorTypeAndShapeInfo().GetElementCount() == step.rows,
            "keys, values and their places of different numbers");
    step.write_index = write_index.GetTensorData<std::int64_t>();
    require(std::all_of(step.write_index, step.write_index + step.rows,
                        [&](std::int64_t first) {
                          return first >= 0 && static_cast<std::size_t>(first) <= step.slots &&
                                 step.keys.count <= step.slots - static_cast<std::size_t>(first);
                        }),
            "slots to write that the caches do not have");
    const auto written = [&](const Ort::ConstValue& before, std::size_t output) {
      const std::vector<std::int64_t> shape = before.GetTensorTypeAndShapeInfo().GetShape();
      auto* const after =
          static_cast<std::uint8_t*>(context.GetOutput(output, shape.data(), shape.size()).GetTensorMutableRawData());
      if (after != bytes(before)) {
        std::memcpy(after, bytes(before), before.GetTensorTypeAndShapeInfo().GetElementCount() * step.number_bytes);
      }
      return after;
    };
    step.key_cache = written(key_cache, 1);
    step.value_cache = written(value_cache, 2);
  }

  Layer layer_{};
};

template <bool CODES>
struct AttentionOperator : OperatorBase<AttentionOperator<CODES>, Attention> {
  const char* GetName() const noexcept { return CODES ? "CachedAttention8" : "CachedAttention"; }
  std::size_t GetInputTypeCount() const noexcept { return CODES ? VALUE_SCALES + 1 : VALUE_CACHE + 1; }
  ONNXTensorElementDataType GetInputType(std::size_t index) const noexcept {
    switch (index) {
    case POSITIONS:
    case QUERY_POSITIONS:
    case WRITE_INDEX:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case MASK:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    case KEY_CACHE:
    case VALUE_CACHE:
      return CODES ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
  }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(std::size_t index) const noexcept {
    return optional(index) ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
  std::size_t GetOutputTypeCount() const noexcept { return 3; }
  ONNXTensorElementDataType GetOutputType(std::size_t index) const noexcept {
    return index > 0 && CODES ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(std::size_t index) const noexcept {
    return index > 0 ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }
};

} // namespace

std::array<const OrtCustomOp*, 2> attention_operators() {
  static const AttentionOperator<false> FLOATS;
  static const AttentionOperator<true> CODES;
  return {&FLOATS, &CODES};
}

} // namespace arforge::kernels
