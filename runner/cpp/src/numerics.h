// Notices logits that are non-finite.
#pragma once

#include <cstdint>

#include "plan.h"

namespace arforge {

// The first image for which a step gave something else than tokens of the model; -1 where all is well. The sampler in
// the graph gives -1 where a logit is non-finite.
std::int64_t spoilt_image(const PlannedStep& step, const StepBuffers& buffers, const ModelFacts& model,
                          std::int64_t images);

} // namespace arforge
