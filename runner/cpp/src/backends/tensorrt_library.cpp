#include "backends/tensorrt_library.h"

#include <NvOnnxParser.h>
#include <algorithm>
#include <array>
#include <map>

#include "arforge.hpp"
#include "backends/shared_library.h"
#include "text.h"

#ifndef ARFORGE_TENSORRT_LIBRARY
#define ARFORGE_TENSORRT_LIBRARY "" // where the library was when this was built
#endif

namespace arforge {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t MOST_ERRORS = 64; // of which the first is told

#ifdef TRT_MAJOR_RTX
constexpr const char* LIBRARY = "tensorrt_rtx";
constexpr const char* PARSER = "tensorrt_onnxparser_rtx";
constexpr std::array<std::int32_t, 2> MINIMUM = {1, 7};
#else
constexpr const char* LIBRARY = "nvinfer";
constexpr const char* PARSER = "nvonnxparser";
constexpr std::array<std::int32_t, 2> MINIMUM = {11, 0};
#endif

// A library's file, as its loader knows it.
std::string file_of(const char* library) {
#ifdef _WIN32
#ifdef TRT_MAJOR_RTX
  return text(library, "_", NV_TENSORRT_MAJOR, "_", NV_TENSORRT_MINOR, ".dll");
#else
  return text(library, "_", NV_TENSORRT_MAJOR, ".dll");
#endif
#else
  return text("lib", library, ".so.", NV_TENSORRT_MAJOR);
#endif
}

template <class Numbers>
std::string dotted(const Numbers& numbers) {
  std::string words;
  for (const std::int32_t number : numbers) {
    words += text(words.empty() ? "" : ".", number);
  }
  return words;
}

// Loads the first of these that can be; they are names or paths, of which empty ones do not count. Throws Error
// (engine) with what the loader says of the first.
void* open_first(const std::vector<std::string>& names, const char* what) {
  std::string first;
  for (const std::string& name : names) {
    std::string problem;
    void* const library = name.empty() ? nullptr : open_library(name, problem);
    if (library != nullptr) {
      return library;
    }
    first = first.empty() ? problem : first;
  }
  throw Error(Code::engine, text(what, " cannot be loaded (", first,
                                 "): install it where the system's loader looks, or name its file as `plugin`"));
}

template <class Function>
Function* function_of(void* library, const char* name) {
  void* const found = find_function(library, name);
  if (found == nullptr) {
    throw Error(Code::engine, text(TENSORRT_TARGET, " is not whole, it has no ", name, ": install it again"));
  }
  return reinterpret_cast<Function*>(found);
}

// Without a GPU the library reports that it looked for one.
bool is_noise(const std::string& message) {
  return message.find("CUDA driver version is insufficient") != std::string::npos ||
         message.find("cudaError") != std::string::npos;
}

} // namespace

void Recorder::log(Severity severity, const char* message) noexcept {
  if (severity > Severity::kERROR) {
    return;
  }
  try {
    const std::lock_guard<std::mutex> held(lock_);
    if (errors_.size() < MOST_ERRORS && !is_noise(message)) {
      errors_.emplace_back(message);
    }
  } catch (const std::exception&) { // a message is lost where there is no memory for it
    return;
  }
}

void Recorder::clear() {
  const std::lock_guard<std::mutex> held(lock_);
  errors_.clear();
}

std::string Recorder::reason(const char* otherwise) const {
  const std::lock_guard<std::mutex> held(lock_);
  if (errors_.empty()) {
    return otherwise;
  }
  const std::string& first = errors_.front();
  const std::size_t begin = std::min(first.find_first_not_of(" \n\t"), first.size());
  return first.substr(begin, first.find_last_not_of(" \n\t") + 1 - begin);
}

Library::Library(const std::string& path) : path_(path) {
  library_ = path.empty() ? open_first({file_of(LIBRARY), ARFORGE_TENSORRT_LIBRARY}, TENSORRT_TARGET)
                          : open_first({path}, TENSORRT_TARGET);
  for (const char* part :
       {"getInferLibMajorVersion", "getInferLibMinorVersion", "getInferLibPatchVersion", "getInferLibBuildVersion"}) {
    numbers_.push_back(function_of<std::int32_t()>(library_, part)());
  }
  version_ = dotted(numbers_);
  check_version();
}

void Library::check_version() const {
  constexpr std::array<std::int32_t, 2> compiled = {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR};
  const std::array<std::int32_t, 2> found = {numbers_.at(0), numbers_.at(1)};
  if (found < MINIMUM) {
    throw Error(Code::engine, text(name(), " is too old, ", dotted(MINIMUM), " is needed: install that"));
  }
  if (found.front() != compiled.front() || found < compiled) { // a library keeps the interface of its major version
    throw Error(Code::engine, text("this arforge was compiled for ", TENSORRT_TARGET, " ", dotted(compiled),
                                   ", here is ", version_, ": build it with -DTENSORRT_ROOT of that version"));
  }
}

std::unique_ptr<nvinfer1::IRuntime> Library::make_runtime() {
  auto* const make = function_of<void*(void*, std::int32_t)>(library_, "createInferRuntime_INTERNAL");
  return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime*>(
      make(static_cast<nvinfer1::ILogger*>(&recorder_), static_cast<std::int32_t>(NV_TENSORRT_VERSION))));
}

bool Library::refit(nvinfer1::ICudaEngine& engine, const fs::path& graph) {
  const auto beside = [](const std::string& library) {
    return library.empty() ? "" : (fs::u8path(library).parent_path() / file_of(PARSER)).u8string();
  };
  void* const parser = open_first({beside(path_), file_of(PARSER), beside(ARFORGE_TENSORRT_LIBRARY)},
                                  "TensorRT's ONNX parser, which engines without weights need,");
  auto* const make = function_of<void*(void*, void*, std::int32_t)>(library_, "createInferRefitter_INTERNAL");
  auto* const read = function_of<void*(void*, void*, std::int32_t)>(parser, "createNvOnnxParserRefitter_INTERNAL");
  nvinfer1::ILogger* const logger = &recorder_;
  const std::unique_ptr<nvinfer1::IRefitter> refitter(
      static_cast<nvinfer1::IRefitter*>(make(&engine, logger, static_cast<std::int32_t>(NV_TENSORRT_VERSION))));
  if (refitter == nullptr) {
    return false;
  }
  const std::unique_ptr<nvonnxparser::IParserRefitter> weights(
      static_cast<nvonnxparser::IParserRefitter*>(read(refitter.get(), logger, NV_ONNX_PARSER_VERSION)));
  return weights != nullptr && weights->refitFromFile(graph.u8string().c_str()) && refitter->refitCudaEngine();
}

Library& load_library(const std::string& target, const std::string& path) {
  if (target != TENSORRT_TARGET) {
    throw Error(Code::engine, text("this arforge was built for ", TENSORRT_TARGET, ", not ", target,
                                   ": build it with -DTENSORRT_ROOT of that library"));
  }
  static std::mutex lock;
  static std::map<std::string, std::unique_ptr<Library>> loaded; // by path
  const std::lock_guard<std::mutex> held(lock);
  std::unique_ptr<Library>& library = loaded[path];
  if (library == nullptr) {
    library = std::make_unique<Library>(path);
  }
  return *library;
}

} // namespace arforge
