#include "backends/onnxruntime_engine.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "backends/engine_graphs.h"
#include "text.h"

namespace arforge {
namespace {

constexpr std::int64_t GROWTH = 64; // slots, of caches in host memory

// Throws where the masks of all kinds of steps would not fit into any sensible memory.
void check_masks(const Extent& extent, const std::vector<Shape>& shapes) {
  constexpr std::size_t MOST = std::size_t{1} << 33; // bytes
  std::set<std::int64_t> widths;
  std::size_t bytes = 0;
  for (const Shape& shape : shapes) {
    if (widths.insert(shape.width).second) {
      bytes += std::min(MOST, entries_of({extent.rows, shape.width, extent.slots}));
    }
    if (bytes >= MOST) {
      throw std::bad_alloc();
    }
  }
}

} // namespace

std::vector<std::int64_t> OnnxRuntimeEngine::cache_shape(std::int64_t slots) const {
  return {extent_.rows, bundle_.model.kv_heads, slots, bundle_.model.head_size};
}

std::size_t OnnxRuntimeEngine::heads() const { return entries_of({extent_.rows, bundle_.model.kv_heads}); }

std::size_t OnnxRuntimeEngine::line_bytes(const Cache& cache) const {
  return entries_of({bundle_.model.head_size}) * bytes_of(cache.type);
}

OnnxRuntimeEngine::OnnxRuntimeEngine(const Bundle& bundle, const EngineIdentity& identity, const Options& options)
    : Engine({identity.widths,
              {},
              0,
              options.provider == "cpu" && !runs_own(identity, options) ? identity.exact_width : 0,
              GROWTH,
              false,
              false,
              cache_type(options.precision),
              measured_windows(identity, options)}),
      bundle_(bundle), identity_(identity), options_(options), again_(read_again(bundle.model)),
      contract_(contract_of(bundle.model, bundle.sampler.graph(), facts_.cache_type)), env_(open_environment()),
      host_(Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault)) {
  for (const std::string& name : cache_names(bundle.model.caches)) {
    caches_.emplace_back();
    caches_.back().name = name;
  }
  choose_graph(guided_rows(1, true), has_low_caches(1));
  find_device();
}

bool OnnxRuntimeEngine::has_low_caches(std::int64_t lockstep) const {
  return options_.provider == "cpu" && lockstep > 0 && lockstep <= identity_.cache_width &&
         !runs_own(identity_, options_);
}

// Opens the graph for those rows and caches, unless it is, and closes the one that is open in its place.
void OnnxRuntimeEngine::choose_graph(std::int64_t rows, bool low) {
  if (low) {
    use_rows(rows, rows_used_);
  }
  const bool fits =
      low ? std::find(folded_rows_.begin(), folded_rows_.end(), rows) != folded_rows_.end() : folded_rows_.empty();
  if (session_ != nullptr && fits) {
    return;
  }
  forget_shapes();
  session_ = Ort::Session{nullptr};
  const std::filesystem::path& path = low ? identity_.cache_graph : graph_for(identity_, options_);
  Ort::Session session =
      open_session(env_, path, options_, false, low ? folded_content(path, rows_used_) : std::string());
  std::map<std::string, Type> types;
  if (low || runs_own(identity_, options_)) {
    types = cache_types(session, bundle_.model);
  }
  check_session(session, low ? folded(contract_, types, again_) : typed(contract_, types),
                text("the step graph of ", bundle_.root.string()));
  for (Cache& cache : caches_) {
    cache.type = types.empty() ? cache_type(options_.precision) : types.at(cache.name);
    cache.host = {};
  }
  session_ = std::move(session);
  folded_rows_ = low ? rows_used_ : std::vector<std::int64_t>();
}

// Where the session wants its caches, if not in host memory.
void OnnxRuntimeEngine::find_device() {
  const std::vector<std::string> names = session_.GetInputNames();
  const std::vector<Ort::ConstMemoryInfo> places = session_.GetMemoryInfoForInputs();
  for (std::size_t index = 0; index < names.size(); index++) {
    const bool cache =
        std::any_of(caches_.begin(), caches_.end(), [&](const Cache& each) { return each.name == names[index]; });
    if (cache && places[index].GetDeviceType() != OrtMemoryInfoDeviceType_CPU) {
      if (conditioned(bundle_.model)) { // whose caches begin with what the host has read of others
        throw Error(Code::engine, "models that take prompts run on provider cpu: leave out the provider");
      }
      device_ = Ort::Allocator(session_, places[index]);
      facts_.growth = 0;
      return;
    }
  }
}

void OnnxRuntimeEngine::prepare(const Extent& extent, const std::vector<Shape>& shapes, std::int64_t zero_slots) {
  choose_graph(extent.rows, has_low_caches(extent.lockstep));
  try {
    if (!(extent_ == extent)) {
      forget_shapes();
      extent_ = extent;
      allocate_caches();
    }
    check_masks(extent, shapes);
    for (const Shape& shape : shapes) {
      bind(shape);
    }
  } catch (...) { // what is half made must not be found again
    forget_shapes();
    throw;
  }
  live_ = shapes.front().slots;
  for (Cache& cache : caches_) {
    const std::size_t line = line_bytes(cache);
    for (std::size_t head = 0; head < heads() && !cache.host.empty(); head++) {
      std::memset(cache.host.data() + head * static_cast<std::size_t>(live_) * line, 0,
                  static_cast<std::size_t>(zero_slots) * line);
    }
  }
}

// The memory of all caches: the host's, grown when needed and never shrunk; or a device's.
void OnnxRuntimeEngine::allocate_caches() {
  const std::vector<std::int64_t> shape = cache_shape(extent_.slots);
  const auto bytes_for = [&](Type type) {
    std::vector<std::int64_t> sizes = shape;
    sizes.push_back(static_cast<std::int64_t>(bytes_of(type)));
    return entries_of(sizes);
  };
  if (device_ == nullptr) {
    for (Cache& cache : caches_) {
      cache.host.resize(std::max(cache.host.size(), bytes_for(cache.type)));
    }
    return;
  }
  const std::size_t bytes = bytes_for(facts_.cache_type);
  zeros_.resize(std::max(zeros_.size(), bytes));
  const ONNXTensorElementDataType type = element_type(facts_.cache_type);
  for (Cache& cache : caches_) {
    cache.value = Ort::Value::CreateTensor(device_, shape.data(), shape.size(), type);
    cache.cleared = Ort::Value::CreateTensor(host_, zeros_.data(), bytes, shape.data(), shape.size(), type);
  }
}

void OnnxRuntimeEngine::clear() { // a device's are cleared by every first step
  for (Cache& cache : caches_) {
    std::fill(cache.host.begin(), cache.host.end(), std::uint8_t{0});
  }
}

// Lays the caches out for more slots: every head's move to where they now begin, the last head's first.
void OnnxRuntimeEngine::spread(std::int64_t slots) {
  for (Cache& cache : caches_) {
    const std::size_t before = static_cast<std::size_t>(live_) * line_bytes(cache);
    const std::size_t now = static_cast<std::size_t>(slots) * line_bytes(cache);
    for (std::size_t head = heads(); head-- > 1;) {
      std::memmove(cache.host.data() + head * now, cache.host.data() + head * before, before);
    }
  }
  live_ = slots;
}

StepBuffers& OnnxRuntimeEngine::buffers(const Shape& shape) {
  try {
    bind(shape);
  } catch (...) {
    forget_shapes();
    throw;
  }
  return buffers_.find({shape.width, shape.queries})->second;
}

void OnnxRuntimeEngine::forget_shapes() {
  bound_.clear();
  buffers_.clear();
  extent_ = {};
}

// Allocates the buffers of one kind of step and binds them and the caches, as the contract says, unless that is done.
void OnnxRuntimeEngine::bind(const Shape& shape) {
  if (bound_.find(shape) != bound_.end()) {
    return;
  }
  const auto [own, missing] = buffers_.try_emplace({shape.width, shape.queries});
  if (missing) {
    own->second = make_buffers(contract_, step_sizes(extent_, {shape.width, shape.queries, extent_.slots}));
  }
  const Sizes sizes = step_sizes(extent_, shape);
  Bound& bound = bound_[shape];
  for (Ort::IoBinding* binding : {&bound.first, &bound.later}) {
    *binding = Ort::IoBinding(session_);
    own->second.each([&](const char* name, auto& buffer) {
      const Tensor* input = find_tensor(contract_.inputs, name);
      const Tensor* tensor = input != nullptr ? input : find_tensor(contract_.outputs, name);
      if (tensor == nullptr) {
        return;
      }
      const std::vector<std::int64_t> size = sizes_of(*tensor, sizes);
      const Ort::Value value = Ort::Value::CreateTensor(host_, buffer.data(), buffer.size() * sizeof buffer[0],
                                                        size.data(), size.size(), element_type(tensor->type));
      input != nullptr ? binding->BindInput(name, value) : binding->BindOutput(name, value);
    });
    bind_caches(*binding, binding == &bound.first, shape.slots);
  }
}

void OnnxRuntimeEngine::bind_caches(Ort::IoBinding& binding, bool first, std::int64_t slots) {
  std::vector<std::int64_t> live = cache_shape(slots);
  const std::size_t entries = entries_of(live);
  if (!folded_rows_.empty()) {
    live = {1, static_cast<std::int64_t>(heads()), slots, bundle_.model.head_size};
  }
  for (Cache& cache : caches_) {
    const std::string output = written_name(cache.name);
    if (device_ == nullptr) {
      const Ort::Value value = Ort::Value::CreateTensor(host_, cache.host.data(), entries * bytes_of(cache.type),
                                                        live.data(), live.size(), element_type(cache.type));
      binding.BindInput(cache.name.c_str(), value);
      binding.BindOutput(output.c_str(), value);
      const auto again = folded_rows_.empty() ? again_.end() : again_.find(cache.name);
      if (again != again_.end()) {
        for (const std::string& name : again->second) {
          binding.BindOutput(name.c_str(), value);
        }
      }
    } else {
      binding.BindInput(cache.name.c_str(), first ? cache.cleared : cache.value);
      binding.BindOutput(output.c_str(), cache.value);
    }
  }
}

void OnnxRuntimeEngine::run(const Shape& shape, bool first) {
  if (device_ == nullptr && shape.slots > live_) {
    spread(shape.slots);
  }
  const Bound& bound = bound_.find(shape)->second;
  try {
    session_.Run(Ort::RunOptions{nullptr}, first ? bound.first : bound.later);
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine, text("ONNX Runtime failed in a step: ", error.what()));
  }
}

// Where a head's slot lies in host memory.
std::uint8_t* OnnxRuntimeEngine::place(Cache& cache, std::int64_t row, std::int64_t head, std::int64_t slot) {
  return cache.host.data() +
         static_cast<std::size_t>((row * bundle_.model.kv_heads + head) * live_ + slot) * line_bytes(cache);
}

CacheContent OnnxRuntimeEngine::read_cache(std::int64_t row, std::int64_t first, std::int64_t count) {
  CacheContent content;
  for (Cache& cache : caches_) {
    const std::size_t bytes = static_cast<std::size_t>(count) * line_bytes(cache);
    std::vector<std::uint8_t>& into = content.emplace_back();
    for (std::int64_t head = 0; head < bundle_.model.kv_heads; head++) {
      const std::uint8_t* const from = place(cache, row, head, first);
      into.insert(into.end(), from, from + bytes);
    }
  }
  return content;
}

void OnnxRuntimeEngine::write_cache(std::int64_t row, std::int64_t first, const CacheContent& content) {
  for (std::size_t index = 0; index < caches_.size(); index++) {
    const std::size_t bytes = content[index].size() / static_cast<std::size_t>(bundle_.model.kv_heads);
    for (std::int64_t head = 0; head < bundle_.model.kv_heads; head++) {
      std::memcpy(place(caches_[index], row, head, first),
                  content[index].data() + static_cast<std::size_t>(head) * bytes, bytes);
    }
  }
}

} // namespace arforge
