#include "kernels/attention_operator.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <vector>

#include "kernels/instructions.h"

namespace arforge::kernels {
namespace {

constexpr std::size_t QUERIES = 64; // at once, so that their scores stay in a core's cache
constexpr std::size_t TASKS = 64;   // that the threads take as they get done
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

struct Facts {
  std::size_t heads, kv_heads, size, query_offset, key_offset, value_offset;
  bool neighbours;
  float scale;
};

std::vector<std::size_t> shape_of(const Ort::ConstValue& value) {
  const std::vector<std::int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
  return {shape.begin(), shape.end()};
}

// A thread's memory, which grows and stays.
class Memory {
public:
  Bench bench(std::size_t rows, std::size_t wide, std::size_t slots) {
    const std::size_t needed = 2 * rows * wide + rows * slots + SIXTEEN * wide + filled_up(rows);
    if (needed > room_) {
      floats_ = aligned<float>(needed);
      room_ = needed;
    }
    float* const first = floats_.get();
    float* const attended = first + rows * wide;
    float* const turned = attended + rows * wide;
    float* const totals = turned + SIXTEEN * wide;
    return {rows, first, totals + filled_up(rows), turned, attended, totals};
  }

private:
  std::size_t room_ = 0;
  Aligned<float> floats_;
};

// The tensors of a step.
struct Step {
  const Facts& facts;
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

// The slots up to the last one that a query of a row sees.
std::size_t used_slots(const std::uint8_t* mask, std::size_t queries, std::size_t slots) {
  std::size_t used = 0;
  for (std::size_t query = 0; query < queries; query++) {
    for (std::size_t slot = slots; slot > used; slot--) {
      if (mask[query * slots + slot - 1] != 0) {
        used = slot;
      }
    }
  }
  return used;
}

void attend(void* work, std::size_t index) noexcept {
  const Step& step = *static_cast<Step*>(work);
  const Facts& facts = step.facts;
  const std::size_t row = index / facts.kv_heads, kv_head = index % facts.kv_heads;
  const auto of_row = [row](const Vectors& all, std::size_t first) {
    Vectors found = all;
    found.first += all.first == nullptr ? 0 : row * all.count * all.stride + first;
    found.positions += all.positions == nullptr ? 0 : row * all.count;
    return found;
  };
  const std::size_t group = facts.heads / facts.kv_heads, first = kv_head * facts.size;
  const std::size_t place = (row * facts.kv_heads + kv_head) * step.slots * facts.size * step.number_bytes;
  const bool codes = step.key_scales != nullptr;
  const Head head = {of_row(step.queries, group * first),
                     group,
                     facts.scale,
                     of_row(step.keys, first),
                     of_row(step.values, first),
                     step.turns,
                     step.key_cache + place,
                     step.value_cache + place,
                     codes ? step.key_scales + first : nullptr,
                     codes ? step.value_scales + first : nullptr,
                     facts.size,
                     step.write_index == nullptr ? 0 : static_cast<std::size_t>(step.write_index[row]),
                     step.used[row],
                     step.mask + row * step.queries.count * step.slots,
                     step.slots,
                     step.result + row * step.queries.count * facts.heads * facts.size + group * first,
                     facts.heads * facts.size};
  thread_local Memory memory;
  const std::size_t most = std::min(step.queries.count, std::max<std::size_t>(1, QUERIES / group)) * group;
  const Bench bench = memory.bench(std::max<std::size_t>(most, 1), filled_up(facts.size), filled_up(head.used));
  const InFloat& known = chosen()->in_float;
  codes ? known.attend_codes(head, bench) : known.attend_floats(head, bench);
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
    facts_ = {number("heads", 1),
              number("kv_heads", 1),
              number("head_size", 1),
              number("query_offset", 0),
              number("key_offset", 0),
              number("value_offset", 0),
              number("neighbours", 0) != 0,
              info.GetAttribute<float>("scale")};
    require(facts_.heads % facts_.kv_heads == 0, "heads of queries that are not so many for each head of keys");
    require(chosen() != nullptr, "this processor has not the instructions");
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) noexcept {
    try {
      compute(Ort::KernelContext(raw));
      return nullptr;
    } catch (const std::exception& error) {
      return Ort::Status(error.what(), ORT_FAIL).release();
    }
  }

private:
  void compute(const Ort::KernelContext& context) const {
    const Ort::ConstValue mask = context.GetInput(MASK), cache = context.GetInput(KEY_CACHE);
    const std::vector<std::size_t> seen = shape_of(mask), kept = shape_of(cache);
    require(seen.size() == 4 && seen[1] == 1, "a mask that is not [rows, 1, queries, slots]");
    require(kept == std::vector<std::size_t>{seen[0], facts_.kv_heads, seen[3], facts_.size} &&
                shape_of(context.GetInput(VALUE_CACHE)) == kept,
            "a cache of another shape than the mask and the attributes say");
    Step step = {facts_, seen[0], seen[3]};
    step.mask = reinterpret_cast<const std::uint8_t*>(mask.GetTensorData<bool>());
    step.number_bytes = 4;
    if (context.GetInputCount() > KEY_SCALES) {
      step.number_bytes = 1;
      step.key_scales = scales(context.GetInput(KEY_SCALES));
      step.value_scales = scales(context.GetInput(VALUE_SCALES));
    }
    read_turns(context, step);
    const std::size_t width = facts_.heads * facts_.size;
    step.queries = vectors(context, QUERY, QUERY_POSITIONS, facts_.query_offset, width, step);
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
    const std::size_t tasks = step.rows * facts_.kv_heads;
    if (tasks > 0) {
      context.ParallelFor(attend, tasks, std::min(tasks, TASKS), &step);
    }
  }

  const float* scales(const Ort::ConstValue& value) const {
    require(value.GetTensorTypeAndShapeInfo().GetElementCount() == facts_.kv_heads * facts_.size,
            "scales of another number than a cache has channels");
    return value.GetTensorData<float>();
  }

  void read_turns(const Ort::KernelContext& context, Step& step) const {
    const Ort::ConstValue cosine = context.GetInput(COSINE), sine = context.GetInput(SINE);
    if (cosine == nullptr) {
      return;
    }
    const std::vector<std::size_t> shape = shape_of(cosine);
    require(sine != nullptr && shape.size() == 2 && shape_of(sine) == shape && 2 * shape[1] == facts_.size,
            "tables of cosines and sines of another shape than the heads need");
    step.table = shape[0];
    step.turns = {cosine.GetTensorData<float>(), sine.GetTensorData<float>(), shape[1], facts_.neighbours};
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
    const auto bytes = [](const Ort::ConstValue& value) { return static_cast<const std::uint8_t*>(value.GetTensorRawData()); };
    const Ort::ConstValue key_cache = context.GetInput(KEY_CACHE), value_cache = context.GetInput(VALUE_CACHE);
    if (context.GetInput(KEY) == nullptr) { // nothing is written, so what is only read is as good as its own
      step.key_cache = const_cast<std::uint8_t*>(bytes(key_cache));
      step.value_cache = const_cast<std::uint8_t*>(bytes(value_cache));
      return;
    }
    const std::size_t width = facts_.kv_heads * facts_.size;
    require(context.GetInput(VALUE) != nullptr && context.GetInput(WRITE_INDEX) != nullptr,
            "keys without values or without a place for them");
    step.keys = vectors(context, KEY, POSITIONS, facts_.key_offset, width, step);
    step.values = vectors(context, VALUE, POSITIONS, facts_.value_offset, width, step);
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

  Facts facts_{};
};

template <bool CODES>
struct AttentionOperator : Ort::CustomOpBase<AttentionOperator<CODES>, Attention, true> {
  OrtStatusPtr CreateKernelV2(const OrtApi& /*api*/, const OrtKernelInfo* info, void** kernel) const noexcept {
    try {
      *kernel = new Attention(info);
      return nullptr;
    } catch (const std::exception& error) {
      return Ort::Status(error.what(), ORT_FAIL).release();
    }
  }
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
