// What a process may use of the machine, and what figures were measured on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace arforge {

// The cores that this process may use: of its affinity mask, as far as its container's CPU quota goes; at least 1. Two
// threads of one core count once. `root`: where /proc and /sys are, for tests.
int available_cores(const std::filesystem::path& root = "/");

// All cores of the machine.
int machine_cores(const std::filesystem::path& root = "/");

// Throws Error (engine) for more threads than the machine can have use for: they only wait for each other, or take it
// down. 0 stands for one an available core.
void check_threads(int threads);

// The processor by its name, and its cores.
std::string device_name(const std::filesystem::path& root = "/");

// Bytes per second that `threads` threads read from memory together: the best of a few passes over half a GiB.
double streaming_bandwidth(int threads);

// Bytes of the process's largest resident set so far; nothing where the system does not tell.
std::optional<std::int64_t> peak_memory();

} // namespace arforge
