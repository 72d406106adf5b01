// TensorRT or TensorRT-RTX, whichever this arforge was built for: they have one interface, in headers that differ, so a
// build is for one of them. The library is loaded when it is first asked for, so that what is built with it also runs
// where it is not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

namespace arforge {

#ifdef TRT_MAJOR_RTX
inline constexpr const char* TENSORRT_TARGET = "tensorrt-rtx";
#else
inline constexpr const char* TENSORRT_TARGET = "tensorrt";
#endif

// Keeps the errors that the library reports, from any of its threads.
class Recorder : public nvinfer1::ILogger {
public:
  void log(Severity severity, const char* message) noexcept override;
  void clear();
  // The first error since then, or `otherwise`.
  [[nodiscard]] std::string reason(const char* otherwise) const;

private:
  mutable std::mutex lock_;
  std::vector<std::string> errors_;
};

class Library {
public:
  // Throws Error (engine) if the library is missing, too old, or another than this was compiled for. `path`: its file;
  // empty: its usual name, where the loader looks, or where it was when this was built.
  explicit Library(const std::string& path);

  // As an engine's identity names it.
  [[nodiscard]] std::string name() const { return std::string(TENSORRT_TARGET) + " " + version_; }
  Recorder& recorder() { return recorder_; }

  // NULL where the library fails.
  std::unique_ptr<nvinfer1::IRuntime> make_runtime();
  // Puts the weights of a graph into an engine that was built without; false if the library fails. Throws Error
  // (engine) if its ONNX parser is missing.
  bool refit(nvinfer1::ICudaEngine& engine, const std::filesystem::path& graph);

private:
  void check_version() const;

  std::string path_;
  std::vector<std::int32_t> numbers_; // of the version, major first
  std::string version_;
  void* library_ = nullptr;
  Recorder recorder_;
};

// The library of a target, once a process for each path. Throws Error (engine) also for a target that this arforge was
// not built for.
Library& load_library(const std::string& target, const std::string& path);

} // namespace arforge
