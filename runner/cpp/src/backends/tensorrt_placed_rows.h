// The keys and values of a step of an engine that only reads its caches, which are put there behind it.
//
// They lie in one block, and so do the caches: a plane for each cache, and in a plane a line for each head of each row
// of the batch. So what rows that write to the same slots have, in all caches, is one box, and one three-dimensional
// copy puts it in place. It is queued behind the step's CUDA graph, since where it goes to changes with each step, and
// when the sampled tokens are there, so that it runs while the host prepares the next step.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "backends/cuda.h"
#include "backends/tensorrt_caches.h"

namespace arforge {

class PlacedRows {
public:
  using Step = std::pair<std::int64_t, std::int64_t>; // rows and width

  // `caches` must lie together. Throws Error (engine) if there is no memory.
  PlacedRows(Gpu& gpu, const TensorRTCaches& caches, const std::vector<Step>& steps);

  // Where a program of that shape finds the caches, and where it writes its own keys and values.
  [[nodiscard]] Places places(const Step& step) const;

  // Queues the copies of what the step that has just run gave, to where each of its rows writes.
  void put(const Step& step, const std::int64_t* write_index);

private:
  Gpu& gpu_;
  const TensorRTCaches& caches_;
  std::map<Step, Planes> steps_; // of each, where its first plane begins
};

} // namespace arforge
