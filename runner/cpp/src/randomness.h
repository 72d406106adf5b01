// Numbers for each image and cell, whatever the schedule or batch: one a cell, or one for each token that it could get,
// as the step graph's sampler draws. Philox4x64-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011.
#pragma once

#include <array>
#include <cstdint>

#include "step_graph.h"

namespace arforge {

std::array<std::uint64_t, 4> philox(std::array<std::uint64_t, 4> counter, std::array<std::uint64_t, 2> key);

// In [0, 1), with key (seed, stream); stream 0 samples, stream 1 orders cells.
float uniform(std::uint64_t seed, std::uint64_t cell, std::uint64_t stream = 0);

// Writes a number within (0, 1) for each of `tokens` tokens, exact in 24 bits. Token t's comes from key (seed, 2) and
// counter (1 + t div 8, cell, 0, 0), of which it is the 32-bit lane t mod 8.
void noise(std::uint64_t seed, std::uint64_t cell, float* numbers, std::int64_t tokens);

// Writes what `cell` of the image with that seed is drawn with into an output of a step, counted over all images.
void fill_random(StepBuffers& buffers, std::int64_t output, std::uint64_t seed, std::int64_t cell);

} // namespace arforge
