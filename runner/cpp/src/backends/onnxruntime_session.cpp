// Sessions of ONNX Runtime, and its execution providers by name.
#include <algorithm>
#include <mutex>

#include "backends/onnxruntime_engine.h"
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
  static std::once_flag once; // the table of functions is the process's
  std::call_once(once, [&] { Ort::InitApi(api); });
  return Ort::Env(ORT_LOGGING_LEVEL_WARNING, "arforge");
}

Ort::Session open_session(Ort::Env& env, const std::filesystem::path& graph, const Options& options, bool plain) {
  try {
    Ort::SessionOptions session;
    session.SetIntraOpNumThreads(options.threads);
    session.SetInterOpNumThreads(1);
    session.AddConfigEntry("session.model_external_initializers_file_folder_path",
                           graph.parent_path().u8string().c_str());
    // It makes layers of one input share a quantizer, after which none of them becomes an integer product.
    session.AddConfigEntry("optimization.disable_specified_optimizers", "CommonSubexpressionElimination");
    if (!plain) {
      append_provider(env, session, options);
    }
    return {env, graph.c_str(), session};
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine,
                text("ONNX Runtime cannot load ", graph.string(), ": ", error.what(), ". Export the bundle again"));
  }
}

} // namespace arforge
