#include "profiling/nvml.h"

#include <array>
#include <utility>

#ifndef _WIN32
#include <dlfcn.h>
#endif

namespace arforge {
namespace {

constexpr unsigned NAME_BYTES = 96;
// Of clocks that are lower than they could be; an idle GPU (0x1) is left out.
constexpr std::pair<unsigned long long, const char*> REASONS[] = {
    {0x2, "application clocks"},         {0x4, "software power cap"},
    {0x8, "hardware slowdown"},          {0x10, "sync boost"},
    {0x20, "software thermal slowdown"}, {0x40, "hardware thermal slowdown"},
    {0x80, "hardware power brake"},      {0x100, "display clocks"}};
constexpr std::pair<int, const char*> CLOCKS[] = {{0, "gpu"}, {1, "gpu sm"}, {2, "gpu memory"}};

#ifndef _WIN32
void* open_nvml(const std::string& name) { return dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL); }
void* symbol(void* library, const char* name) { return dlsym(library, name); }
void close_library(void* library) { dlclose(library); }
#else
void* open_nvml(const std::string&) { return nullptr; }
void* symbol(void*, const char*) { return nullptr; }
void close_library(void*) {}
#endif

// The library's function of that name and type; NULL where it lacks it.
template <class Function>
Function* function(void* library, const char* name) {
  return reinterpret_cast<Function*>(symbol(library, name));
}

// The library's status; one of our own where it lacks the function.
template <class... Arguments>
int call(void* library, const char* name, Arguments... arguments) {
  auto* const found = function<int(Arguments...)>(library, name);
  return found == nullptr ? -1 : found(arguments...);
}

} // namespace

std::unique_ptr<Nvml> Nvml::open(const std::string& library) {
  void* const loaded = open_nvml(library);
  if (loaded == nullptr) {
    return nullptr;
  }
  void* device = nullptr;
  if (call(loaded, "nvmlInit_v2") != 0 || call(loaded, "nvmlDeviceGetHandleByIndex_v2", 0U, &device) != 0) {
    close_library(loaded);
    return nullptr;
  }
  return std::make_unique<Nvml>(loaded, device);
}

Nvml::~Nvml() {
  call(library_, "nvmlShutdown");
  close_library(library_);
}

std::optional<std::string> Nvml::name() const {
  std::array<char, NAME_BYTES> text{};
  const int failed = call(library_, "nvmlDeviceGetName", device_, text.data(), NAME_BYTES);
  text.back() = '\0';
  return failed != 0 ? std::nullopt : std::optional<std::string>(text.data());
}

std::optional<double> Nvml::milliwatts() const {
  unsigned told = 0;
  const int failed = call(library_, "nvmlDeviceGetPowerUsage", device_, &told);
  return failed != 0 ? std::nullopt : std::optional<double>(told);
}

std::optional<double> Nvml::celsius() const {
  unsigned told = 0;
  const int failed = call(library_, "nvmlDeviceGetTemperature", device_, 0, &told);
  return failed != 0 ? std::nullopt : std::optional<double>(told);
}

std::map<std::string, double> Nvml::megahertz() const {
  std::map<std::string, double> clocks;
  for (const auto& [kind, named] : CLOCKS) {
    unsigned told = 0;
    if (call(library_, "nvmlDeviceGetClockInfo", device_, kind, &told) == 0) {
      clocks[named] = told;
    }
  }
  return clocks;
}

std::set<std::string> Nvml::reasons() const {
  unsigned long long bits = 0;
  std::set<std::string> held;
  if (call(library_, "nvmlDeviceGetCurrentClocksThrottleReasons", device_, &bits) == 0) {
    for (const auto& [bit, named] : REASONS) {
      if ((bits & bit) != 0) {
        held.insert(named);
      }
    }
  }
  return held;
}

} // namespace arforge
