// What a generation holds between steps, and its way into and out of a step's buffers.
#pragma once

#include <cstdint>
#include <vector>

#include "backends/onnxruntime_engine.h"
#include "bundle/bundle.h"
#include "plan.h"

namespace arforge {

struct State {
  std::vector<std::int64_t> known; // (rows, columns): cells, condition tokens, special tokens
  std::int64_t columns;
  std::int64_t images, rows; // rows beyond the images are unconditional
  Visibility visibility;
};

// The tokens known before the first step; `tokens` (images, cells): those of kept cells count.
State start_of(const Plan& plan, const Model& model, const std::int64_t* classes, const Extent& extent,
               const std::vector<std::int64_t>& tokens);

// Writes a step's inputs; their tokens come from what is known. Allocates nothing, nor does `store`.
void fill(const PlannedStep& step, std::int64_t zero_slots, State& state, StepBuffers& buffers);

// The first image for which a step gave something else than tokens of the model; -1 where all is well. The sampler in
// the graph gives -1 where a logit is NaN or infinite.
std::int64_t spoilt_image(const PlannedStep& step, const StepBuffers& buffers, const Model& model, std::int64_t images);

// Enters the sampled tokens into every row, conditional and not.
void store(const PlannedStep& step, const StepBuffers& buffers, State& state);

} // namespace arforge
