// The files of a bundle: where they may lie, and what they hold.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace arforge {

// Throws Error (path) unless `path` is relative, plain, in its shortest form, and stays inside.
void check_relative(const std::string& path);

// Throws Error (path, missing_file, file_size) unless this is a plain file of that size, reached without links.
void check_file(const std::filesystem::path& root, const std::string& path, std::int64_t size);

// The content of a file of at most `most` bytes; throws Error (missing_file, file_size).
std::string read_file(const std::filesystem::path& path, std::int64_t most);

std::string sha256_of(const std::filesystem::path& path);

} // namespace arforge
