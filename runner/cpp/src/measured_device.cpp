// What a figure was measured on: the processor, its memory bandwidth, memory used.
#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "device.h"
#include "text.h"

#ifdef __unix__
#include <sys/resource.h>
#include <sys/utsname.h>
#endif

namespace arforge {
namespace {

constexpr std::size_t STREAMED = std::size_t{1} << 29; // bytes: beyond any last-level cache
constexpr int PASSES = 3;

std::string architecture() {
#ifdef __unix__
  utsname names{};
  if (uname(&names) == 0) {
    return names.machine;
  }
#endif
  return "unknown processor";
}

} // namespace

std::string device_name(const std::filesystem::path& root) {
  std::string name;
  std::ifstream facts(root / "proc/cpuinfo");
  for (std::string line; name.empty() && std::getline(facts, line);) {
    const std::size_t colon = line.find(':');
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      name = line.substr(std::min(line.find_first_not_of(' ', colon + 1), line.size()));
    }
  }
  return text(name.empty() ? architecture() : name, ", ", std::thread::hardware_concurrency(), " cores");
}

double streaming_bandwidth(int threads) {
  const std::vector<std::uint32_t> streamed(STREAMED / sizeof(std::uint32_t), 1);
  std::vector<std::uint32_t> found(static_cast<std::size_t>(threads));
  const std::size_t each = streamed.size() / found.size();
  double best = 0;
  for (int round = 0; round < PASSES; round++) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> workers;
    workers.reserve(found.size());
    for (std::size_t part = 0; part < found.size(); part++) {
      workers.emplace_back([&, part] {
        const auto first = streamed.begin() + static_cast<std::ptrdiff_t>(part * each);
        found[part] = std::accumulate(first, first + static_cast<std::ptrdiff_t>(each), 0U, std::bit_or<>());
      });
    }
    std::for_each(workers.begin(), workers.end(), [](std::thread& worker) { worker.join(); });
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    const bool read = std::all_of(found.begin(), found.end(), [](std::uint32_t bits) { return bits == 1; });
    best = std::max(best, read ? static_cast<double>(each * found.size() * sizeof(std::uint32_t)) / taken.count() : 0);
  }
  return best;
}

std::optional<std::int64_t> peak_memory() {
#ifdef __unix__
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    return std::int64_t{1024} * usage.ru_maxrss;
  }
#endif
  return std::nullopt;
}

} // namespace arforge
