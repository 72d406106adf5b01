// Notices logits that are non-finite.
#pragma once

#include <cstdint>

#include "backends/engine.h"
#include "decoding.h"

namespace arforge {

inline constexpr std::int64_t NO_TOKEN = -1; // what a step graph gives where a logit is non-finite

// The first image for which the call of `decoding` that has just run gave something else than tokens of the model; -1
// where all is well.
std::int64_t spoilt_image(const Decoding& decoding, const StepBuffers& buffers, const ModelFacts& model,
                          std::int64_t images);

// What helps against logits that are non-finite.
const char* advice(const Engine& engine);

} // namespace arforge
