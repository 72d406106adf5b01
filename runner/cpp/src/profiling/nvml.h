// What NVIDIA's management library tells of the first GPU: power, clocks, temperature, and why clocks are held down.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

namespace arforge {

// Whatever the GPU does not tell is nothing, or missing.
class Nvml {
public:
  // NULL where there is no such library, or it finds no GPU.
  static std::unique_ptr<Nvml> open(const std::string& library = "libnvidia-ml.so.1");

  Nvml(void* library, void* device) : library_(library), device_(device) {}
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;
  ~Nvml();

  [[nodiscard]] std::optional<std::string> name() const;
  [[nodiscard]] std::optional<double> milliwatts() const;
  [[nodiscard]] std::optional<double> celsius() const;
  [[nodiscard]] std::map<std::string, double> megahertz() const;
  [[nodiscard]] std::set<std::string> reasons() const;

private:
  void* library_;
  void* device_;
};

} // namespace arforge
