// What a process may use of the machine.
#pragma once

#include <filesystem>

namespace arforge {

// The cores that this process may use: of its affinity mask, as far as its container's CPU quota goes; at least 1. Two
// threads of one core count once. `root`: where /proc and /sys are, for tests.
int available_cores(const std::filesystem::path& root = "/");

// All cores of the machine.
int machine_cores(const std::filesystem::path& root = "/");

// Throws Error (engine) for more threads than the machine can have use for: they only wait for each other, or take it
// down. 0 stands for one an available core.
void check_threads(int threads);

} // namespace arforge
