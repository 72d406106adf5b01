#include "backends/onnxruntime_session.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "bundle/files.h"
#include "device.h"
#include "kernels/instructions.h"
#include "kernels/operators.h"
#include "text.h"

namespace arforge {
namespace {

constexpr int MINIMUM_MINOR = 31; // of version 1: the first whose operators of opset 24 are sound
constexpr const char* PLUGIN = "arforge-tensorrt-rtx";
constexpr const char* PLUGIN_PROVIDER = "NvTensorRTRTXExecutionProvider";
#ifdef _WIN32
constexpr const char* PLUGIN_LIBRARY = "onnxruntime_providers_nv_tensorrt_rtx.dll";
#else
constexpr const char* PLUGIN_LIBRARY = "libonnxruntime_providers_nv_tensorrt_rtx.so";
#endif

// ONNX Runtime's own builds send telemetry unless this variable says otherwise when the first environment is made. It
// is set while the library is loaded, when no other thread reads the process's variables; a user's own value stays.
const bool QUIET = []() noexcept {
#ifdef _WIN32
  return std::getenv("ORT_DISABLE_TELEMETRY") != nullptr || _putenv_s("ORT_DISABLE_TELEMETRY", "1") == 0;
#else
  return setenv("ORT_DISABLE_TELEMETRY", "1", 0) == 0;
#endif
}();

// Throws unless this ONNX Runtime was built with the provider.
void require_provider(const std::string& name, const std::string& provider) {
  const std::vector<std::string> available = Ort::GetAvailableProviders();
  if (std::find(available.begin(), available.end(), provider) == available.end()) {
    throw Error(Code::engine, text("this ONNX Runtime has no provider '", name, "' (it has ", listed(available),
                                   "): use a build for that device, or provider cpu"));
  }
}

void append_cuda(Ort::SessionOptions& session) {
  require_provider("cuda", "CUDAExecutionProvider");
  session.AppendExecutionProvider_CUDA_V2(*Ort::CUDAProviderOptions());
}

void append_tensorrt(Ort::SessionOptions& session) {
  require_provider("tensorrt", "TensorrtExecutionProvider");
  session.AppendExecutionProvider_TensorRT_V2(*Ort::TensorRTProviderOptions());
  append_cuda(session); // for what TensorRT leaves over
}

void append_plugin(Ort::Env& env, Ort::SessionOptions& session, const std::string& library) {
  const auto devices_of = [&] {
    std::vector<Ort::ConstEpDevice> devices;
    for (const Ort::ConstEpDevice& device : env.GetEpDevices()) {
      if (std::string(device.EpName()) == PLUGIN_PROVIDER) {
        devices.push_back(device);
      }
    }
    return devices;
  };
  std::vector<Ort::ConstEpDevice> devices = devices_of();
  if (devices.empty()) { // the environment is the process's: an earlier runner may have registered it
    const std::filesystem::path path = std::filesystem::u8path(library.empty() ? PLUGIN_LIBRARY : library);
    try {
      env.RegisterExecutionProviderLibrary(PLUGIN, path.native());
    } catch (const Ort::Exception& error) {
      throw Error(Code::engine, text("cannot load the TensorRT-RTX provider from ", path.string(), ": ", error.what(),
                                     ". Name its library as `plugin`"));
    }
    devices = devices_of();
  }
  if (devices.empty()) {
    throw Error(Code::engine, "the TensorRT-RTX provider finds no GPU that it supports: use provider cpu");
  }
  devices.resize(1);
  session.AppendExecutionProvider_V2(env, devices, Ort::KeyValuePairs());
}

void append_provider(Ort::Env& env, Ort::SessionOptions& session, const Options& options) {
  if (options.provider == "cuda") {
    append_cuda(session);
  } else if (options.provider == "tensorrt") {
    append_tensorrt(session);
  } else if (options.provider == "tensorrt-rtx") {
    append_plugin(env, session, options.plugin);
  } else if (options.provider != "cpu") {
    throw Error(Code::engine, text("unknown provider '", options.provider, "': use cpu, cuda, tensorrt, tensorrt-rtx"));
  }
}

// One side of a graph, as its session tells it.
struct Side {
  const char* word; // "input", "output"
  std::vector<std::string> names;
  std::vector<Ort::TypeInfo> types;
};

// Whether a shape is the contract's, which has -1 where it leaves a size open. What comes out may be known less well.
bool same_shape(const std::vector<std::int64_t>& found, const std::vector<std::int64_t>& wanted, bool output) {
  if (output && found.empty()) {
    return true;
  }
  return std::equal(
      found.begin(), found.end(), wanted.begin(), wanted.end(),
      [&](std::int64_t one, std::int64_t other) { return one == other || (output && (one < 0 || other < 0)); });
}

// What is wrong with a tensor of a graph; nothing where it is the contract's.
std::string difference(const Side& side, const Tensor& wanted) {
  std::vector<std::string> words;
  words.reserve(wanted.shape.size());
  for (const Dimension& dimension : wanted.shape) {
    words.push_back(dimension.word.empty() ? std::to_string(dimension.size) : dimension.word);
  }
  const std::string expected = text("expected ", name_of(wanted.type), " [", listed(words, ""), "]");
  const auto place = std::find(side.names.begin(), side.names.end(), wanted.name);
  if (place == side.names.end()) {
    return text("is missing, ", expected);
  }
  const Ort::TypeInfo& type = side.types[static_cast<std::size_t>(place - side.names.begin())];
  if (type.GetONNXType() != ONNX_TYPE_TENSOR) {
    return text("is no tensor, ", expected);
  }
  const auto facts = type.GetTensorTypeAndShapeInfo();
  if (facts.GetElementType() != element_type(wanted.type)) {
    return text("is of another type, ", expected);
  }
  const std::vector<std::int64_t> shape = facts.GetShape();
  return same_shape(shape, sizes_of(wanted, {}), *side.word == 'o')
             ? ""
             : text("is [", listed(shape, ""), "] where -1 is open, ", expected);
}

void check_side(const Side& side, const std::vector<Tensor>& expected, const std::string& what) {
  for (const Tensor& wanted : expected) {
    if (const std::string problem = difference(side, wanted); !problem.empty()) {
      throw Error(Code::engine, text(what, " does not fit the manifest: ", side.word, " ", wanted.name, " ", problem,
                                     ": export it again"));
    }
  }
  if (side.names.size() != expected.size()) {
    throw Error(Code::engine, text(what, " does not fit the manifest: it has ", side.names.size(), " ", side.word,
                                   "s, expected ", expected.size(), ": export it again"));
  }
}

// What a session is told where nobody names a number of threads. The library's own default (0) is a thread pinned to
// each core of the machine, so it hears of a limit where one is.
int default_threads() {
  const int available = available_cores();
  return available < machine_cores() ? available : 0;
}

} // namespace

Ort::Env open_environment() {
  const OrtApiBase* base = OrtGetApiBase();
  const std::string version = base->GetVersionString();
  int major = 0;
  int minor = 0;
  char dot = 0;
  std::istringstream(version) >> major >> dot >> minor;
  const OrtApi* api = major > 1 || minor >= MINIMUM_MINOR ? base->GetApi(ORT_API_VERSION) : nullptr;
  if (api == nullptr) {
    throw Error(Code::engine, text("onnxruntime ", version, " is too old: use 1.",
                                   std::max(MINIMUM_MINOR, ORT_API_VERSION), " or later"));
  }
  (void)QUIET;
  static std::once_flag once; // the table of functions is the process's
  std::call_once(once, [&] { Ort::InitApi(api); });
  return Ort::Env(ORT_LOGGING_LEVEL_WARNING, "arforge");
}

Ort::Session open_session(Ort::Env& env, const std::filesystem::path& graph, const Options& options, bool plain,
                          std::string content) {
  try {
    Ort::SessionOptions session;
    session.SetIntraOpNumThreads(options.threads > 0 ? options.threads : default_threads());
    session.SetInterOpNumThreads(1);
    session.AddConfigEntry("session.x64quantprecision", "1"); // without VNNI the quick int8 sums overflow
    session.AddConfigEntry("session.model_external_initializers_file_folder_path",
                           graph.parent_path().u8string().c_str());
    // It makes layers of one input share a quantizer, after which none of them becomes an integer product.
    session.AddConfigEntry("optimization.disable_specified_optimizers", "CommonSubexpressionElimination");
    if (!plain) {
      append_provider(env, session, options);
    }
    if (use_kernels() && (plain || options.provider == "cpu")) {
      if (content.empty()) {
        content = read_file(graph, LARGEST_GRAPH, Code::engine);
      }
      if (kernels::name_operators(content)) {
        kernels::add_operators(session);
      }
    }
    if (!content.empty()) {
      return {env, content.data(), content.size(), session};
    }
    return {env, graph.c_str(), session};
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine,
                text("ONNX Runtime cannot load ", graph.string(), ": ", error.what(), ". Export the bundle again"));
  }
}

bool use_kernels() {
  const char* const named = std::getenv("ARFORGE_KERNELS");
  return kernels::supported() && (named == nullptr || std::string_view(named) != "off");
}

ONNXTensorElementDataType element_type(Type type) {
  switch (type) {
  case Type::boolean:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  case Type::int8:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  case Type::uint8:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  case Type::int64:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  case Type::float32:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  case Type::float16:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  case Type::bfloat16:
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

void check_session(const Ort::Session& session, const Contract& contract, const std::string& what) {
  Side inputs{"input", session.GetInputNames(), {}};
  for (std::size_t index = 0; index < inputs.names.size(); index++) {
    inputs.types.push_back(session.GetInputTypeInfo(index));
  }
  Side outputs{"output", session.GetOutputNames(), {}};
  for (std::size_t index = 0; index < outputs.names.size(); index++) {
    outputs.types.push_back(session.GetOutputTypeInfo(index));
  }
  check_side(inputs, contract.inputs, what);
  check_side(outputs, contract.outputs, what);
}

} // namespace arforge
