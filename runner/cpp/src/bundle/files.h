// The files of a bundle: where they may lie, and what they hold.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "arforge.hpp"

namespace arforge {

// Throws Error (path) unless `path` is relative, plain, in its shortest form, stays inside, and is one that every
// system can have: printable ASCII.
void check_relative(const std::string& path);

// Throws Error (path) if two paths, or folders of them, are one on a file system that does not tell case.
void check_distinct(const std::vector<std::string>& paths);

// Throws Error (bundle) if the system says that `place` may not be looked at: that is neither missing nor damaged.
void check_permitted(const std::filesystem::path& place, const std::error_code& failed);

// What to do with a bundle that holds links.
std::string how_to_copy(const std::filesystem::path& root);

// Throws Error (path, missing_file, file_size; bundle) unless this is a plain file of that size, reached without links,
// that may be read.
void check_file(const std::filesystem::path& root, const std::string& path, std::int64_t size);

constexpr std::int64_t LARGEST_GRAPH = std::int64_t{1} << 31; // bytes: protobuf's own limit

// The content of a file of at most `most` bytes; throws Error (`code`; bundle where it may not be read).
std::string read_file(const std::filesystem::path& path, std::int64_t most, Code code);

std::string sha256_of(const std::filesystem::path& path);

} // namespace arforge
