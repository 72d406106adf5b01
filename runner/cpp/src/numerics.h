// Notices logits that are non-finite.
#pragma once

#include <cstdint>

#include "plan.h"

namespace arforge {

inline constexpr std::int64_t NO_TOKEN = -1; // what a step graph gives where a logit is non-finite

// The first image for which a step gave something else than tokens of the model; -1 where all is well.
std::int64_t spoilt_image(const PlannedStep& step, const StepBuffers& buffers, const ModelFacts& model,
                          std::int64_t images);

} // namespace arforge
