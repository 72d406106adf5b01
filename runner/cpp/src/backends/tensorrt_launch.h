// Passes of several programs one after another, as one CUDA graph, without a copy between them.
#pragma once

#include <vector>

#include "backends/cuda.h"
#include "backends/tensorrt_program.h"

namespace arforge {

// Work that is queued pass by pass the first time, and is one CUDA graph from then on.
class Launch {
public:
  struct Pass {
    Program* program;
    const Places* elsewhere; // of tensors that lie elsewhere in it
  };

  Launch(Gpu& gpu, std::vector<Pass> passes);
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
  // Nothing of it may run any more.
  ~Launch();

  // Does the work, and waits for it the first time only. Throws Error (engine) if an engine or the GPU fails.
  void start();

private:
  void queue();

  Gpu& gpu_;
  std::vector<Pass> passes_;
  cudaGraphExec_t graph_ = nullptr;
  bool looked_ = false; // whether it can be captured
};

} // namespace arforge
