#include "backends/tensorrt_launch.h"

#include <algorithm>
#include <utility>

namespace arforge {

Launch::Launch(Gpu& gpu, std::vector<Pass> passes) : gpu_(gpu), passes_(std::move(passes)) { gpu_.expect_graph(); }

Launch::~Launch() {
  if (graph_ != nullptr) {
    gpu_.discard(graph_);
  }
  gpu_.expect_no_graph();
}

void Launch::queue() {
  for (const Pass& pass : passes_) {
    pass.program->execute(*pass.elsewhere);
  }
}

void Launch::start() {
  if (graph_ != nullptr) {
    gpu_.launch(graph_);
    return;
  }
  queue(); // the first time as it is, since the library may compile and allocate
  gpu_.synchronize();
  if (!looked_) {
    looked_ = true;
    if (std::all_of(passes_.begin(), passes_.end(), [](const Pass& pass) { return pass.program->capturable(); })) {
      graph_ = gpu_.captured([&] { queue(); });
    }
  }
}

} // namespace arforge
