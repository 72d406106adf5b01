#include "device.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "arforge.hpp"
#include "text.h"

#ifdef __linux__
#include <sched.h>
#include <unistd.h>
#endif

namespace arforge {
namespace fs = std::filesystem;
namespace {

constexpr int THREADS_A_PROCESSOR = 4;
constexpr int LEAST_LIMIT = 64; // threads that every machine bears

// The cores that these logical processors belong to; each is its own where the system does not tell.
int physical_cores(const std::vector<int>& processors, const fs::path& root) {
  std::set<std::string> names;
  for (const int number : processors) {
    const std::string folder = "cpu" + std::to_string(number);
    std::ifstream file(root / "sys/devices/system/cpu" / folder / "topology/thread_siblings_list");
    std::string siblings;
    names.insert(std::getline(file, siblings) ? siblings : folder);
  }
  return static_cast<int>(names.size());
}

std::vector<int> all_processors() {
#ifdef __linux__
  const auto count = static_cast<std::size_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
#else
  const auto count = static_cast<std::size_t>(std::max(1U, std::thread::hardware_concurrency()));
#endif
  std::vector<int> numbers(count);
  for (std::size_t index = 0; index < numbers.size(); index++) {
    numbers[index] = static_cast<int>(index);
  }
  return numbers;
}

// The logical processors that this process may run on.
std::vector<int> allowed_processors() {
#ifdef __linux__
  constexpr int MOST = 1 << 16; // processors that a kernel may be built for
  for (int count = CPU_SETSIZE; count <= MOST; count *= 2) {
    cpu_set_t* mask = CPU_ALLOC(count);
    std::vector<int> numbers;
    if (mask != nullptr && sched_getaffinity(0, CPU_ALLOC_SIZE(count), mask) == 0) {
      for (int number = 0; number < count; number++) {
        if (CPU_ISSET_S(number, CPU_ALLOC_SIZE(count), mask)) {
          numbers.push_back(number);
        }
      }
    }
    CPU_FREE(mask);
    if (!numbers.empty()) {
      return numbers;
    }
  }
#endif
  return all_processors();
}

// Processors' worth of time that one control group allows, of either version; nothing where it sets no limit.
std::optional<double> quota_of(const fs::path& group) {
  double limit = 0;
  double period = 0;
  std::ifstream both(group / "cpu.max");
  if (both) {
    both >> limit >> period; // "max" is no number
  } else {
    std::ifstream(group / "cpu.cfs_quota_us") >> limit;
    std::ifstream(group / "cpu.cfs_period_us") >> period;
  }
  return limit > 0 && period > 0 ? std::optional<double>(limit / period) : std::nullopt;
}

// The folders of a line of /proc/self/cgroup, "number:controllers:path", and of all groups above it: a container may
// see the path of the host above its own root.
std::vector<fs::path> groups_of(const std::string& line, const fs::path& root) {
  const std::size_t first = std::min(line.find(':'), line.size());
  const std::size_t second = line.find(':', std::min(first + 1, line.size()));
  if (second == std::string::npos) {
    return {};
  }
  const std::string controllers = line.substr(first + 1, second - first - 1);
  const bool counts = controllers.empty() || ("," + controllers + ",").find(",cpu,") != std::string::npos;
  std::vector<fs::path> folders;
  const std::string mounts[] = {controllers, "cpu"};
  for (const std::string& mount : mounts) {
    fs::path path = fs::path(line.substr(second + 1)).relative_path();
    for (bool more = counts; more; path = path.parent_path()) {
      folders.push_back(root / "sys/fs/cgroup" / mount / path);
      more = !path.empty();
    }
    if (controllers.empty()) {
      break;
    }
  }
  return folders;
}

} // namespace

int machine_cores(const fs::path& root) { return physical_cores(all_processors(), root); }

void check_threads(int threads) {
  const int most = std::max(LEAST_LIMIT, THREADS_A_PROCESSOR * static_cast<int>(all_processors().size()));
  if (threads < 0 || threads > most) {
    throw Error(Code::engine,
                text(threads, " threads: use at least 1, and here at most ", most, ", or 0 for one an available core"));
  }
}

int available_cores(const fs::path& root) {
  double cores = physical_cores(allowed_processors(), root);
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    for (const fs::path& group : groups_of(line, root)) {
      cores = std::min(cores, std::ceil(quota_of(group).value_or(cores)));
    }
  }
  return std::max(1, static_cast<int>(cores));
}

} // namespace arforge
