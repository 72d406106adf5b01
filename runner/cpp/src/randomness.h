// One uniform number for each image and cell, whatever the schedule or batch. Philox4x64-10: Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>

namespace arforge {

std::array<std::uint64_t, 4> philox(std::array<std::uint64_t, 4> counter, std::array<std::uint64_t, 2> key);

// In [0, 1), with key (seed, stream); stream 0 samples, stream 1 orders cells.
float uniform(std::uint64_t seed, std::uint64_t cell, std::uint64_t stream = 0);

} // namespace arforge
