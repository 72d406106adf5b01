// Keeps what TensorRT-RTX compiles on a device, beside the user's other caches, so that it compiles once.
#pragma once

#include <filesystem>
#include <string>

namespace arforge {

// The kernels of one engine file, whose name holds its hash, on one kind of GPU. The library checks on loading that
// they fit its version and the device; what does not fit is compiled again.
class KernelCache {
public:
  KernelCache(const std::filesystem::path& engine, const std::string& compute_capability);

  // What was kept; empty where nothing was.
  [[nodiscard]] std::string load() const;

  // Writes the file anew, whole or not at all; a folder that cannot be written costs time, not more.
  void save(const std::string& content) const noexcept;

private:
  std::filesystem::path path_; // empty where the user has no folder for caches
};

} // namespace arforge
