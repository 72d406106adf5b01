#include "backends/kernel_cache.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>

#include "bundle/files.h"
#include "text.h"

namespace arforge {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t LARGEST_KEPT = std::int64_t{1} << 30; // bytes

// ARFORGE_CACHE, else arforge in XDG_CACHE_HOME or ~/.cache; empty where there is none.
fs::path cache_folder() {
  const auto variable = [](const char* name) {
    const char* const value = std::getenv(name);
    return fs::path(value != nullptr ? value : "");
  };
  if (fs::path chosen = variable("ARFORGE_CACHE"); !chosen.empty()) {
    return chosen;
  }
  if (const fs::path caches = variable("XDG_CACHE_HOME"); !caches.empty()) {
    return caches / "arforge";
  }
  const fs::path home = variable("HOME");
  return home.empty() ? home : home / ".cache/arforge";
}

} // namespace

KernelCache::KernelCache(const fs::path& engine, const std::string& compute_capability) {
  std::string digits = compute_capability;
  digits.erase(std::remove(digits.begin(), digits.end(), '.'), digits.end());
  if (const fs::path folder = cache_folder(); !folder.empty()) {
    path_ = folder / text(engine.stem().string(), "-sm", digits, ".kernels");
  }
}

std::string KernelCache::load() const {
  std::error_code failed;
  if (path_.empty() || !fs::is_regular_file(path_, failed)) {
    return "";
  }
  try {
    return read_file(path_, LARGEST_KEPT, Code::engine);
  } catch (const Error&) {
    return "";
  }
}

void KernelCache::save(const std::string& content) const noexcept {
  try {
    if (path_.empty()) {
      return;
    }
    fs::create_directories(path_.parent_path());
    const fs::path beside = path_.parent_path() / text(path_.filename().string(), ".", std::random_device()());
    std::ofstream file(beside, std::ios::binary);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    file.close();
    std::error_code failed;
    if (file) {
      fs::rename(beside, path_, failed);
    }
    if (!file || failed) {
      fs::remove(beside, failed);
    }
  } catch (const std::exception&) { // it is compiled again
    return;
  }
}

} // namespace arforge
