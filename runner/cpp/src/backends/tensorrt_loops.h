// The loops that a TensorRT engine has, whose loop graph is loaded when it is first wanted.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "backends/draft_loop.h"
#include "backends/tensorrt_between.h"
#include "backends/tensorrt_identity.h"
#include "backends/tensorrt_loop.h"
#include "plan.h"

namespace arforge {

class Loops {
public:
  // The step's program of a width, for the batch that is prepared for.
  using StepOf = std::function<Program&(std::int64_t)>;
  // Puts the first call's inputs in place.
  using Stage = std::function<void()>;

  // `look_every`: calls between two looks of the host, made even, and no more than a graph has; in place of 0, all, the
  // usual number: none knows how many an image takes.
  Loops(const Bundle& bundle, const TensorRTIdentity& identity, Library& library, Gpu& gpu, std::int64_t look_every);

  // The calls of a batch of that plan; NULL where the engine has no loop for it.
  std::unique_ptr<DraftLoop> loop(const Plan& plan, const SpreadBatch& batch, const StepOf& step_of, Stage stage);

private:
  [[nodiscard]] std::int32_t profile(std::int64_t images, std::int64_t fed, std::int64_t width) const; // -1: none
  TensorRTLoop& made(std::int64_t images, std::int64_t later, const TensorRTLoop::Steps& steps);

  const Bundle& bundle_;
  const TensorRTIdentity& identity_;
  const LoopIdentity* built_; // NULL: none
  Library& library_;
  Gpu& gpu_;
  std::int64_t calls_; // of a launch
  std::unique_ptr<LoadedEngine> loaded_;
  std::map<std::pair<const Program*, const Program*>, std::unique_ptr<TensorRTLoop>> made_; // by its steps
};

} // namespace arforge
