#include "backends/tensorrt_program.h"

#include <algorithm>
#include <cstring>

#include "arforge.hpp"
#include "backends/mapped_file.h"
#include "text.h"

namespace arforge {
namespace fs = std::filesystem;
namespace {

constexpr auto USER_MANAGED = nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;

// Only TensorRT-RTX tells whether a context can be captured; TensorRT's can, since the graphs have no branches.
template <class Context>
auto is_capturable(Context& context, cudaStream_t stream, int /*first*/)
    -> decltype(context.isStreamCapturable(stream)) {
  return context.isStreamCapturable(stream);
}

template <class Context>
bool is_capturable(Context& /*context*/, cudaStream_t /*stream*/, long /*otherwise*/) {
  return true;
}

std::optional<Type> type_of(nvinfer1::DataType type) {
  switch (type) {
  case nvinfer1::DataType::kBOOL:
    return Type::boolean;
  case nvinfer1::DataType::kUINT8:
    return Type::uint8;
  case nvinfer1::DataType::kINT64:
    return Type::int64;
  case nvinfer1::DataType::kFLOAT:
    return Type::float32;
  case nvinfer1::DataType::kHALF:
    return Type::float16;
  case nvinfer1::DataType::kBF16:
    return Type::bfloat16;
  default:
    return std::nullopt;
  }
}

// Sizes of a tensor; none where TensorRT does not know them all.
std::optional<std::vector<std::int64_t>> sizes_of(const nvinfer1::Dims& dims) {
  if (dims.nbDims < 0 || dims.nbDims > nvinfer1::Dims::MAX_DIMS) {
    return std::nullopt;
  }
  std::vector<std::int64_t> sizes(dims.d, dims.d + dims.nbDims);
  const bool known = std::all_of(sizes.begin(), sizes.end(), [](std::int64_t size) { return size >= 0; });
  return known ? std::optional(std::move(sizes)) : std::nullopt;
}

std::size_t aligned(std::size_t size) { return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

} // namespace

LoadedEngine::LoadedEngine(fs::path path, Library& library, Gpu& gpu, const std::optional<fs::path>& stripped_from)
    : path_(std::move(path)), library_(library), gpu_(gpu)
#ifdef TRT_MAJOR_RTX
      ,
      kernels_(path_, gpu.compute_capability())
#endif
{
  library.recorder().clear();
  runtime_ = library.make_runtime();
  if (runtime_ != nullptr) {
    const MappedFile content(path_);
    engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
  }
  if (engine_ == nullptr) {
    refuse("cannot load");
  }
  if (stripped_from) {
    refit(*stripped_from);
  }
  for (std::int32_t profile = 0; profile < engine_->getNbOptimizationProfiles(); profile++) {
    workspace_bytes_ = std::max<std::int64_t>(workspace_bytes_, engine_->getDeviceMemorySizeForProfileV2(profile));
  }
  workspace_ = gpu.allocate(static_cast<std::size_t>(workspace_bytes_));
  configure();
}

void LoadedEngine::refuse(const char* what) const {
  throw Error(Code::engine, text(library_.name(), " ", what, " ", path_.string(), ": ",
                                 library_.recorder().reason("no reason given")));
}

void LoadedEngine::refit(const fs::path& graph) {
  if (!library_.refit(*engine_, graph)) {
    refuse(text("cannot put the weights of ", graph.string(), " into").c_str());
  }
}

bool LoadedEngine::aliases(const std::string& output, const std::string& input) const {
#if defined(TRT_MAJOR_RTX) || NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 15
  const char* const found = engine_->getAliasedInputTensor(output.c_str());
  return found != nullptr && found == input;
#else // which has no caches that are updated in place
  return output.empty() && input.empty();
#endif
}

#ifdef TRT_MAJOR_RTX
// TensorRT-RTX compiles kernels on the device: at once, so that a captured graph has the final ones.
void LoadedEngine::configure() {
  configuration_.reset(engine_->createRuntimeConfig());
  if (configuration_ == nullptr) {
    refuse("cannot run");
  }
  configuration_->setExecutionContextAllocationStrategy(USER_MANAGED);
  configuration_->setDynamicShapesKernelSpecializationStrategy(
      nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
  cache_.reset(configuration_->createRuntimeCache());
  if (cache_ == nullptr) {
    refuse("cannot keep the kernels of");
  }
  std::string content = kernels_.load();
  if (!content.empty() && cache_->deserialize(content.data(), content.size())) {
    known_ = std::move(content);
  }
  configuration_->setRuntimeCache(*cache_);
}

std::unique_ptr<nvinfer1::IExecutionContext> LoadedEngine::make_context() {
  return std::unique_ptr<nvinfer1::IExecutionContext>(engine_->createExecutionContext(configuration_.get()));
}

void LoadedEngine::keep_kernels() noexcept {
  try {
    const std::unique_ptr<nvinfer1::IHostMemory> found(cache_ == nullptr ? nullptr : cache_->serialize());
    if (found != nullptr && found->size() > 0) {
      const std::string content(static_cast<const char*>(found->data()), found->size());
      if (content != known_) {
        kernels_.save(content);
      }
    }
  } catch (const std::exception&) { // they are compiled again
    return;
  }
}

LoadedEngine::~LoadedEngine() { keep_kernels(); }
#else
void LoadedEngine::configure() {}

std::unique_ptr<nvinfer1::IExecutionContext> LoadedEngine::make_context() {
  return std::unique_ptr<nvinfer1::IExecutionContext>(engine_->createExecutionContext(USER_MANAGED));
}

LoadedEngine::~LoadedEngine() = default;
#endif

std::unique_ptr<Program> LoadedEngine::program(std::int32_t profile, const Places& placed) {
  library_.recorder().clear();
  std::unique_ptr<nvinfer1::IExecutionContext> context = make_context();
  if (context == nullptr) {
    refuse("cannot run");
  }
  context->setDeviceMemoryV2(workspace_, workspace_bytes_);
  if (!context->setOptimizationProfileAsync(profile, gpu_.stream())) {
    refuse("cannot run");
  }
  return std::make_unique<Program>(*this, std::move(context), profile, placed);
}

Block::Block(Gpu& gpu, const Kinds& kinds) {
  for (const auto& [name, kind] : kinds) {
    bytes_ += aligned(kind.bytes);
  }
  device_ = gpu.allocate(bytes_);
  host_ = gpu.pinned(bytes_);
  std::memset(host_, 0, bytes_);
  std::size_t offset = 0;
  for (const auto& [name, kind] : kinds) {
    tensors[name] = {host_ + offset, kind.shape, kind.type, kind.bytes};
    addresses[name] = device_ + offset;
    offset += aligned(kind.bytes);
  }
}

Program::Program(LoadedEngine& loaded, std::unique_ptr<nvinfer1::IExecutionContext> context, std::int32_t profile,
                 const Places& placed)
    : loaded_(loaded), context_(std::move(context)) {
  const nvinfer1::ICudaEngine& engine = *loaded.engine_;
  std::vector<const char*> inputs;
  std::vector<const char*> outputs;
  for (std::int32_t index = 0; index < engine.getNbIOTensors(); index++) {
    const char* const name = engine.getIOTensorName(index);
    const bool input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    if (input && !sizes_of(engine.getTensorShape(name)) &&
        !context_->setInputShape(name, engine.getProfileShape(name, profile, nvinfer1::OptProfileSelector::kOPT))) {
      loaded.refuse("cannot run");
    }
    if (const auto place = placed.find(name); place != placed.end()) {
      this->place(name, place->second);
    } else {
      (input ? inputs : outputs).push_back(name);
    }
  }
  const auto block_of = [&](const std::vector<const char*>& names) {
    Block::Kinds kinds;
    for (const char* name : names) {
      kinds.emplace_back(name, kind_of(name));
    }
    auto block = std::make_unique<Block>(loaded.gpu_, kinds);
    for (const auto& [name, address] : block->addresses) {
      this->place(name.c_str(), address);
    }
    return block;
  };
  input_ = block_of(inputs);
  output_ = block_of(outputs);
  loaded.gpu_.expect_graph();
}

void Program::bind(const char* name, void* address) {
  if (!context_->setTensorAddress(name, address)) {
    loaded_.refuse("cannot run");
  }
}

void Program::place(const char* name, std::uint8_t* address) {
  bind(name, address);
  addresses_[name] = address;
}

HostTensor Program::kind_of(const char* name) const {
  const std::optional<Type> type = type_of(loaded_.engine_->getTensorDataType(name));
  const auto sizes = sizes_of(context_->getTensorShape(name));
  if (!type || !sizes) {
    throw Error(Code::engine, text(loaded_.path_.string(), " has a tensor ", name,
                                   " of an unknown type or shape: rebuild the engine"));
  }
  return {nullptr, *sizes, *type, entries_of(*sizes) * bytes_of(*type)};
}

void Program::queue() {
  input_->upload(loaded_.gpu_);
  execute();
  output_->download(loaded_.gpu_);
}

void Program::execute(const Places& elsewhere) {
  for (const auto& [name, address] : elsewhere) {
    bind(name.c_str(), address);
  }
  const bool done = context_->enqueueV3(loaded_.gpu_.stream());
  for (const auto& [name, address] : elsewhere) {
    bind(name.c_str(), addresses_.at(name));
  }
  if (!done) {
    loaded_.refuse("failed in");
  }
}

bool Program::capturable() const { return is_capturable(*context_, loaded_.gpu_.stream(), 0); }

std::map<std::string, HostTensor> Program::kinds() const {
  std::map<std::string, HostTensor> found;
  for (const auto& [name, address] : addresses_) {
    found[name] = kind_of(name.c_str());
  }
  return found;
}

void Program::run() {
  Gpu& gpu = loaded_.gpu_;
  if (graph_ != nullptr) {
    gpu.launch(graph_);
    gpu.synchronize();
    return;
  }
  queue(); // the first time as it is, since the library may compile and allocate
  gpu.synchronize();
  if (!looked_) {
    looked_ = true;
    if (capturable()) {
      graph_ = gpu.captured([&] { queue(); });
    }
  }
}

} // namespace arforge
