#include "profiling/sensors.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <system_error>

namespace arforge {
namespace fs = std::filesystem;
namespace {

const char* const GPU = "gpu";                               // that NVML knows
const char* const INPUTS[] = {"VIN", "VDD_IN", "POM_5V_IN"}; // rails that feed all others, in order
// In names of devfreq's devices; the last is the memory's.
const char* const GPU_CLOCKS[] = {"gpu", "ga10b", "gv11b", "gp10b", "bwmgr"};

// Whether a name is that of a pattern, in which one * stands for anything.
bool matches(const std::string& name, const std::string& pattern) {
  const std::size_t star = pattern.find('*');
  if (star == std::string::npos) {
    return name == pattern;
  }
  const std::string after = pattern.substr(star + 1);
  return name.size() >= pattern.size() - 1 && name.compare(0, star, pattern, 0, star) == 0 &&
         name.compare(name.size() - after.size(), after.size(), after) == 0;
}

// The places below a folder that a pattern names, in order.
std::vector<fs::path> glob(const fs::path& root, const fs::path& pattern) {
  std::vector<fs::path> found = {root};
  for (const fs::path& part : pattern) {
    std::vector<fs::path> deeper;
    for (const fs::path& folder : found) {
      std::error_code failed;
      for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end; entry.increment(failed)) {
        if (matches(entry->path().filename().string(), part.string())) {
          deeper.push_back(entry->path());
        }
      }
    }
    found = std::move(deeper);
  }
  std::sort(found.begin(), found.end());
  return found;
}

// A file's one line; empty where it cannot be read.
std::string word(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  const auto visible = [](unsigned char letter) { return std::isspace(letter) == 0; };
  line.erase(std::find_if(line.rbegin(), line.rend(), visible).base(), line.end());
  line.erase(line.begin(), std::find_if(line.begin(), line.end(), visible));
  return line;
}

// A file's number; nothing where it cannot be read now, as with what is switched off.
std::optional<double> number(const fs::path& path) {
  const std::string line = word(path);
  char* end = nullptr;
  const double value = std::strtod(line.c_str(), &end);
  return line.empty() || *end != '\0' || !std::isfinite(value) ? std::nullopt : std::optional<double>(value);
}

// The numbers, divided by `scale`, of the files that can be read now.
std::map<std::string, double> numbers(const std::map<std::string, fs::path>& files, double scale) {
  std::map<std::string, double> told;
  for (const auto& [name, path] : files) {
    if (const std::optional<double> value = number(path)) {
      told[name] = *value / scale;
    }
  }
  return told;
}

// Files by what the `type` beside each says; of several of one type all but the first get a number.
std::map<std::string, fs::path> named(const fs::path& sysfs, const char* pattern) {
  std::map<std::string, fs::path> files;
  std::map<std::string, int> seen;
  for (const fs::path& path : glob(sysfs, pattern)) {
    const std::string type = word(path.parent_path() / "type");
    const std::string name = type.empty() ? path.parent_path().filename().string() : type;
    const int count = ++seen[name];
    files[count == 1 ? name : name + " " + std::to_string(count)] = path;
  }
  return files;
}

bool is_fan(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char letter) { return std::tolower(letter); });
  return name.find("fan") != std::string::npos;
}

} // namespace

std::optional<double> Reading::watts() const {
  for (const char* name : INPUTS) {
    if (const auto found = milliwatts.find(name); found != milliwatts.end()) {
      return found->second / 1000;
    }
  }
  double rails = 0;
  std::size_t count = 0;
  for (const auto& [name, drawn] : milliwatts) {
    if (name != GPU) {
      rails += drawn;
      count++;
    }
  }
  const auto gpu = milliwatts.find(GPU);
  if (count == 0 && gpu != milliwatts.end()) {
    return gpu->second / 1000;
  }
  return count == 0 ? std::nullopt : std::optional<double>(rails / 1000);
}

bool Reading::empty() const {
  return milliwatts.empty() && megahertz.empty() && celsius.empty() && throttled.empty() && events.empty();
}

Sensors::Sensors(const fs::path& sysfs, std::unique_ptr<Nvml> nvml) : nvml_(std::move(nvml)) {
  for (const fs::path& folder : glob(sysfs, "bus/i2c/drivers/ina3221/*/hwmon/hwmon*")) {
    for (const char* channel : {"1", "2", "3"}) {
      const fs::path volts = folder / ("in" + std::string(channel) + "_input");
      const fs::path amperes = folder / ("curr" + std::string(channel) + "_input");
      std::string name = word(folder / ("in" + std::string(channel) + "_label"));
      if (name.empty()) {
        name = folder.parent_path().parent_path().filename().string() + " channel " + channel;
      }
      std::error_code failed;
      if (name != "NC" && fs::exists(volts, failed) && fs::exists(amperes, failed)) { // connected
        rails_[name] = {volts, amperes};
      }
    }
  }
  const std::vector<fs::path> inputs = glob(sysfs, "bus/i2c/drivers/ina238/*/hwmon/hwmon*/power1_input");
  if (!inputs.empty()) { // of Thor, in microwatts
    powers_["VIN"] = inputs.front();
  }
  for (const fs::path& path : glob(sysfs, "class/devfreq/*/cur_freq")) {
    const std::string name = path.parent_path().filename().string();
    const auto is_in = [&](const char* part) { return name.find(part) != std::string::npos; };
    if (std::any_of(std::begin(GPU_CLOCKS), std::end(GPU_CLOCKS), is_in)) {
      clocks_[name] = path;
    }
  }
  cores_ = glob(sysfs, "devices/system/cpu/cpufreq/policy*/scaling_cur_freq");
  zones_ = named(sysfs, "class/thermal/thermal_zone*/temp");
  for (const auto& [name, path] : named(sysfs, "class/thermal/cooling_device*/cur_state")) {
    if (!is_fan(name)) { // which cools, unfelt
      cooling_[name] = path;
    }
  }
  for (const fs::path& path : glob(sysfs, "class/hwmon/hwmon*/oc*_event_cnt")) {
    const std::string name = path.filename().string();
    events_[name.substr(0, name.find('_'))] = path;
  }
}

Reading Sensors::read() const {
  Reading reading;
  reading.milliwatts = numbers(powers_, 1000);
  for (const auto& [name, files] : rails_) {
    const std::optional<double> millivolts = number(files.first);
    const std::optional<double> milliamperes = number(files.second);
    if (millivolts && milliamperes) {
      reading.milliwatts[name] = *millivolts * *milliamperes / 1000;
    }
  }
  reading.megahertz = numbers(clocks_, 1e6);
  double cores = 0;
  int told = 0;
  for (const fs::path& path : cores_) {
    if (const std::optional<double> kilohertz = number(path)) {
      cores += *kilohertz;
      told++;
    }
  }
  if (told > 0) {
    reading.megahertz["cpu"] = cores / told / 1000;
  }
  reading.celsius = numbers(zones_, 1000);
  for (const auto& [name, state] : numbers(cooling_, 1)) {
    if (state > 0) {
      reading.throttled.insert(name);
    }
  }
  for (const auto& [name, count] : numbers(events_, 1)) {
    reading.events[name] = static_cast<std::int64_t>(count);
  }
  if (nvml_) {
    if (const std::optional<double> power = nvml_->milliwatts()) {
      reading.milliwatts[GPU] = *power;
    }
    if (const std::optional<double> heat = nvml_->celsius()) {
      reading.celsius[GPU] = *heat;
    }
    reading.megahertz.merge(nvml_->megahertz());
    reading.throttled.merge(nvml_->reasons());
  }
  return reading;
}

std::optional<std::string> Sensors::gpu() const { return nvml_ ? nvml_->name() : std::nullopt; }

} // namespace arforge
