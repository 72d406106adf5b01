#include "backends/onnxruntime_engine.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "text.h"

namespace arforge {
namespace {

// A tensor over a buffer that holds just as much as the shape says.
template <class T>
Ort::Value tensor(const Ort::MemoryInfo& host, std::vector<T>& buffer, const std::vector<std::int64_t>& shape,
                  ONNXTensorElementDataType type = Ort::TypeToTensorType<T>::type) {
  return Ort::Value::CreateTensor(host, buffer.data(), buffer.size() * sizeof(T), shape.data(), shape.size(), type);
}

template <class T>
Ort::Value scalar(const Ort::MemoryInfo& host, T& place) {
  const std::int64_t one = 1;
  return Ort::Value::CreateTensor<T>(host, &place, 1, &one, 1);
}

// Throws where the masks of all kinds of steps would not fit into any sensible memory.
void check_masks(std::int64_t rows, const Plan& plan) {
  constexpr std::size_t MOST = std::size_t{1} << 33; // bytes
  std::set<Shape> shapes;
  std::size_t bytes = 0;
  for (const PlannedStep& step : plan.steps) {
    if (shapes.insert(step.shape).second) {
      bytes += std::min(MOST, product({rows, step.shape.width, step.shape.slots}));
    }
    if (bytes >= MOST) {
      throw std::bad_alloc();
    }
  }
}

std::size_t bytes_of(ONNXTensorElementDataType type) {
  switch (type) {
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    return 4;
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
  case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
    return 2;
  default:
    return 0;
  }
}

// An engine's own graph has what the CPU provider does best; others are given the one that it was made from.
const std::filesystem::path& graph_for(const EngineIdentity& identity, const std::string& provider) {
  if (provider == "cpu") {
    return identity.graph;
  }
  if (identity.standard.empty()) {
    throw Error(Code::engine, text("an int8 engine in blocks is for provider cpu, not ", provider,
                                   ": use fp32, or `arforge build --precision int8 --quantization static`"));
  }
  return identity.standard;
}

} // namespace

std::size_t product(std::initializer_list<std::int64_t> sizes) {
  std::size_t result = 1;
  for (const std::int64_t size : sizes) {
    if (size > 0 &&
        result > static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()) / static_cast<std::size_t>(size)) {
      throw std::bad_alloc();
    }
    result *= static_cast<std::size_t>(size);
  }
  return result;
}

std::size_t Engine::heads() const { return product({extent_.rows, bundle_.model.kv_heads}); }

std::size_t Engine::line_bytes() const { return product({bundle_.model.head_size}) * cache_item_; }

Engine::Engine(const Bundle& bundle, const EngineIdentity& identity, const Options& options)
    : bundle_(bundle), options_(options), widths_(identity.widths), env_(open_environment()) {
  session_ = open_session(env_, graph_for(identity, options_.provider), options_, false);
  host_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  check_graph();
}

// The graph's inputs are those of the bundle's model: what is bound and allocated rests on it.
void Engine::check_graph() {
  const Model& model = bundle_.model;
  const std::vector<std::string> given = session_.GetInputNames();
  const auto refuse = [&](const std::string& problem) {
    throw Error(Code::engine, text("the step graph of ", bundle_.root.string(), " ", problem, ": export it again"));
  };
  std::set<std::string> expected = {"tokens",   "positions",   "write_index", "mask", "uniforms",
                                    "guidance", "temperature", "top_k",       "top_p"};
  if (model.queries) {
    expected.insert("query_positions");
  }
  const std::size_t fixed = expected.size();
  if (given.size() != fixed + 2 * static_cast<std::size_t>(model.caches)) {
    refuse(text("has ", given.size(), " inputs, the manifest's ", model.caches, " caches ask for ",
                fixed + 2 * static_cast<std::size_t>(model.caches)));
  }
  const std::vector<Ort::ConstMemoryInfo> places = session_.GetMemoryInfoForInputs();
  for (std::int64_t index = 0; index < model.caches; index++) {
    for (const char* kind : {"key", "value"}) {
      caches_.emplace_back();
      caches_.back().name = text(kind, "_cache_", index);
      expected.insert(caches_.back().name);
    }
  }
  if (expected != std::set<std::string>(given.begin(), given.end())) {
    refuse("has other inputs than the format names");
  }
  for (std::size_t index = 0; index < given.size(); index++) {
    if (given[index].find("_cache_") == std::string::npos) {
      continue;
    }
    const Ort::TypeInfo type = session_.GetInputTypeInfo(index);
    if (type.GetONNXType() != ONNX_TYPE_TENSOR) {
      refuse("has a cache that is no tensor");
    }
    cache_type_ = type.GetTensorTypeAndShapeInfo().GetElementType();
    const std::vector<std::int64_t> shape = type.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4 || shape[1] != model.kv_heads || shape[3] != model.head_size) {
      refuse(text("has caches of shape [", listed(shape), "], the manifest says ", model.kv_heads, " heads of ",
                  model.head_size));
    }
    if (places[index].GetDeviceType() != OrtMemoryInfoDeviceType_CPU && device_ == nullptr) {
      device_ = Ort::Allocator(session_, places[index]);
    }
  }
  cache_item_ = bytes_of(cache_type_);
  if (cache_item_ == 0) {
    refuse("has caches that are not floating-point");
  }
}

void Engine::prepare(const Extent& extent, const Plan& plan) {
  try {
    if (!(extent_ == extent)) {
      buffers_.clear();
      extent_ = extent;
      allocate_caches();
    }
    check_masks(extent.rows, plan);
    for (const PlannedStep& step : plan.steps) {
      if (buffers_.find(step.shape) == buffers_.end()) {
        bind(step.shape);
      }
    }
  } catch (...) { // what is half made must not be found again
    buffers_.clear();
    extent_ = {};
    throw;
  }
  live_ = plan.steps.front().shape.slots;
  const std::size_t line = line_bytes();
  for (Cache& cache : caches_) {
    for (std::size_t head = 0; head < heads() && !cache.host.empty(); head++) {
      std::memset(cache.host.data() + head * static_cast<std::size_t>(live_) * line, 0,
                  static_cast<std::size_t>(plan.zero_slots) * line);
    }
  }
}

// The memory of all caches: the host's, grown when needed and never shrunk; or a device's.
void Engine::allocate_caches() {
  const std::vector<std::int64_t> shape = {extent_.rows, bundle_.model.kv_heads, extent_.slots,
                                           bundle_.model.head_size};
  const std::size_t bytes = product({shape[0], shape[1], shape[2], shape[3], static_cast<std::int64_t>(cache_item_)});
  if (device_ == nullptr) {
    for (Cache& cache : caches_) {
      cache.host.resize(std::max(cache.host.size(), bytes));
    }
    return;
  }
  zeros_.resize(std::max(zeros_.size(), bytes));
  for (Cache& cache : caches_) {
    cache.value = Ort::Value::CreateTensor(device_, shape.data(), shape.size(), cache_type_);
    cache.cleared = Ort::Value::CreateTensor(host_, zeros_.data(), bytes, shape.data(), shape.size(), cache_type_);
  }
}

void Engine::clear() { // a device's are cleared by every first step
  for (Cache& cache : caches_) {
    std::fill(cache.host.begin(), cache.host.end(), std::uint8_t{0});
  }
}

// Lays the caches out for more slots: every head's move to where they now begin, the last head's first.
void Engine::spread(std::int64_t slots) {
  const std::size_t before = static_cast<std::size_t>(live_) * line_bytes();
  const std::size_t now = static_cast<std::size_t>(slots) * line_bytes();
  for (Cache& cache : caches_) {
    for (std::size_t head = heads(); head-- > 1;) {
      std::memmove(cache.host.data() + head * now, cache.host.data() + head * before, before);
    }
  }
  live_ = slots;
}

// Allocates the buffers of one kind of step and binds them and the caches.
void Engine::bind(const Shape& shape) {
  const std::int64_t outputs = shape.queries > 0 ? shape.queries : shape.width;
  const std::int64_t images = extent_.images;
  const std::int64_t rows = extent_.rows;
  const std::vector<std::int64_t> live = {rows, bundle_.model.kv_heads, shape.slots, bundle_.model.head_size};
  StepBuffers& b = buffers_[shape];
  b.tokens.resize(product({rows, shape.width}));
  b.positions.resize(product({rows, shape.width}));
  b.write_index.resize(product({rows}));
  b.mask.resize(product({rows, shape.width, shape.slots}));
  b.query_positions.resize(product({rows, shape.queries}));
  b.uniforms.resize(product({images, outputs}));
  b.next_tokens.resize(product({images, outputs}));
  for (Ort::IoBinding* binding : {&b.first, &b.later}) {
    *binding = Ort::IoBinding(session_);
    binding->BindInput("tokens", tensor(host_, b.tokens, {rows, shape.width}));
    binding->BindInput("positions", tensor(host_, b.positions, {rows, shape.width}));
    binding->BindInput("write_index", tensor(host_, b.write_index, {rows}));
    binding->BindInput("mask",
                       tensor(host_, b.mask, {rows, 1, shape.width, shape.slots}, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL));
    if (shape.queries > 0) {
      binding->BindInput("query_positions", tensor(host_, b.query_positions, {rows, shape.queries}));
    }
    binding->BindInput("uniforms", tensor(host_, b.uniforms, {images, outputs}));
    binding->BindInput("guidance", scalar(host_, scalars.guidance));
    binding->BindInput("temperature", scalar(host_, scalars.temperature));
    binding->BindInput("top_k", scalar(host_, scalars.top_k));
    binding->BindInput("top_p", scalar(host_, scalars.top_p));
    binding->BindOutput("next_tokens", tensor(host_, b.next_tokens, {images, outputs}));
    for (Cache& cache : caches_) {
      const std::string output = "new_" + cache.name;
      if (device_ == nullptr) {
        const std::size_t bytes = product({rows, live[1], live[2], live[3]}) * cache_item_;
        const Ort::Value value =
            Ort::Value::CreateTensor(host_, cache.host.data(), bytes, live.data(), live.size(), cache_type_);
        binding->BindInput(cache.name.c_str(), value);
        binding->BindOutput(output.c_str(), value);
      } else {
        binding->BindInput(cache.name.c_str(), binding == &b.first ? cache.cleared : cache.value);
        binding->BindOutput(output.c_str(), cache.value);
      }
    }
  }
}

void Engine::run(const Shape& shape, StepBuffers& buffers, bool first) {
  if (device_ == nullptr && shape.slots > live_) {
    spread(shape.slots);
  }
  try {
    session_.Run(Ort::RunOptions{nullptr}, first ? buffers.first : buffers.later);
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine, text("ONNX Runtime failed in a step: ", error.what()));
  }
}

} // namespace arforge
