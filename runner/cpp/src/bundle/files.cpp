#include "bundle/files.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <map>
#include <vector>

#ifndef _WIN32
#include <unistd.h>
#endif

#include "arforge.hpp"
#include "bundle/sha256.h"
#include "text.h"

namespace arforge {
namespace fs = std::filesystem;
namespace {

// The parts of a path between its slashes.
std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts(1);
  for (const char letter : path) {
    if (letter == '/') {
      parts.emplace_back();
    } else {
      parts.back() += letter;
    }
  }
  return parts;
}

std::error_code last_failure() { return {errno, std::generic_category()}; }

std::ifstream opened(const fs::path& path, Code code) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    check_permitted(path, last_failure());
    throw Error(code, text("cannot read ", path.string(), ": export the bundle again, or copy it whole"));
  }
  return file;
}

} // namespace

void check_relative(const std::string& path) {
  if (path.rfind('/', 0) == 0 || path.find_first_of(std::string("\\:\0", 3)) != std::string::npos) {
    throw Error(Code::path, text("path '", path, "' in the manifest is not a plain relative path"));
  }
  const bool printable =
      std::all_of(path.begin(), path.end(), [](char letter) { return letter >= ' ' && letter <= '~'; });
  for (const std::string& part : parts_of(path)) {
    if (part.empty() || part == "." || part == "..") {
      throw Error(Code::path,
                  text("path '", path, "' in the manifest leaves the bundle, or is not in its shortest form"));
    }
    if (!printable || part.back() == '.' || part.back() == ' ') {
      throw Error(Code::path, text("path '", path, "' in the manifest has a name that not every system can have"));
    }
  }
}

void check_distinct(const std::vector<std::string>& paths) {
  std::map<std::string, std::string> spelled; // as every case is the same, to how it was written first
  for (const std::string& path : paths) {
    for (std::size_t end = 0; end < path.size();) {
      end = std::min(path.find('/', end + 1), path.size());
      const std::string place = path.substr(0, end);
      std::string folded = place;
      std::transform(folded.begin(), folded.end(), folded.begin(), [](char letter) {
        return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter;
      });
      const std::string& first = spelled.emplace(folded, place).first->second;
      if (first != place) {
        throw Error(Code::path, text("paths '", first, "' and '", place, "' in the manifest differ in case only"));
      }
    }
  }
}

void check_permitted(const fs::path& place, const std::error_code& failed) {
  if (failed == std::errc::permission_denied || failed == std::errc::operation_not_permitted) {
    throw Error(Code::bundle, text("cannot read ", place.string(), ": ", failed.message()));
  }
}

std::string how_to_copy(const fs::path& root) {
  return text("copy it with `cp -rL ", quoted(root.string()), " COPY`, or download it with --local-dir");
}

void check_file(const fs::path& root, const std::string& path, std::int64_t size) {
  check_relative(path);
  fs::path place = root;
  fs::file_status facts;
  std::error_code failed;
  for (const std::string& part : parts_of(path)) {
    place /= fs::u8path(part);
    facts = fs::symlink_status(place, failed);
    check_permitted(place, failed);
    if (failed || !fs::exists(facts)) {
      throw Error(Code::missing_file,
                  text(root.string(), " lacks ", path, ": export the bundle again, or copy it whole"));
    }
    if (fs::is_symlink(facts)) {
      throw Error(Code::path, text(place.string(), " is a link; a bundle holds plain files only: ", how_to_copy(root)));
    }
  }
  if (!fs::is_regular_file(facts)) {
    throw Error(Code::missing_file, text(place.string(), " is not a file"));
  }
  const auto found = fs::file_size(place, failed);
  if (failed || found != static_cast<std::uintmax_t>(size)) {
    throw Error(Code::file_size, text(place.string(), " has ", found, " bytes, the manifest says ", size,
                                      ": the copy is incomplete; copy or export again"));
  }
#ifndef _WIN32
  if (access(place.c_str(), R_OK) != 0) {
    check_permitted(place, last_failure());
  }
#endif
}

std::string read_file(const fs::path& path, std::int64_t most, Code code) {
  std::ifstream file = opened(path, code);
  file.seekg(0, std::ios::end);
  const auto size = static_cast<std::int64_t>(file.tellg());
  if (size < 0 || size > most) {
    throw Error(code, text(path.string(), " has ", size, " bytes, more than ", most));
  }
  std::string content(static_cast<std::size_t>(size), '\0');
  file.seekg(0);
  file.read(content.data(), size);
  if (file.gcount() != size) {
    throw Error(code, text(path.string(), " ended after ", file.gcount(), " of ", size, " bytes"));
  }
  return content;
}

std::string sha256_of(const fs::path& path) {
  std::ifstream file = opened(path, Code::missing_file);
  std::vector<std::uint8_t> part(1 << 16);
  Sha256 hash = sha256_start();
  while (file) {
    file.read(reinterpret_cast<char*>(part.data()), static_cast<std::streamsize>(part.size()));
    sha256_enter(hash, part.data(), static_cast<std::size_t>(file.gcount()));
  }
  return sha256_finish(hash);
}

} // namespace arforge
