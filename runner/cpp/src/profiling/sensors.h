// Power, clocks, temperatures and throttling as the machine tells them: sysfs, of Jetsons above all, and NVML. What is
// found where, docs/edge.md says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "profiling/nvml.h"

namespace arforge {

// One look at all sensors, each by its name.
struct Reading {
  std::map<std::string, double> milliwatts, megahertz, celsius;
  std::set<std::string> throttled;            // what holds clocks down now
  std::map<std::string, std::int64_t> events; // counted since the machine was started

  // Of the rail that feeds all others; else of all rails, or of the GPU; nothing where nothing tells.
  [[nodiscard]] std::optional<double> watts() const;
  [[nodiscard]] bool empty() const;
};

// Finds what there is to read once.
class Sensors {
public:
  Sensors(const std::filesystem::path& sysfs, std::unique_ptr<Nvml> nvml);

  [[nodiscard]] Reading read() const;
  // The first NVIDIA GPU, where there is one.
  [[nodiscard]] std::optional<std::string> gpu() const;

private:
  using Path = std::filesystem::path;
  using Files = std::map<std::string, Path>;

  std::unique_ptr<Nvml> nvml_;
  std::map<std::string, std::pair<Path, Path>> rails_; // files of mV and mA
  Files powers_, clocks_, zones_, cooling_, events_;
  std::vector<Path> cores_;
};

} // namespace arforge
