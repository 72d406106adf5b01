// Calls of a TensorRT step that run ahead on drafts, one after another in one CUDA graph, with the loop graph between
// them (`loop_graph.h`).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/tensorrt_between.h"
#include "backends/tensorrt_launch.h"
#include "backends/tensorrt_program.h"
#include "step_graph.h"

namespace arforge {

// The loop of one number of images and pair of widths.
//
// The state is there twice: a pass reads one and writes the other. What the loop graph makes for the step lies where
// the step reads it, and what the step samples is read where it lies.
class TensorRTLoop {
public:
  // The step of the first call, which may be that of the later ones, and the loop graph's profiles behind both.
  struct Steps {
    Program &first, &later;
    std::int32_t behind_first, behind_later;
  };

  // `loaded`: the loop graph's engine. `calls` of a launch are an even number, so that the state ends where it began.
  // Throws Error (engine) unless the engine is of that contract.
  TensorRTLoop(Gpu& gpu, LoadedEngine& loaded, const Contract& contract, const Sizes& sizes, const Steps& steps,
               std::int64_t calls);

  // Waits for what a batch that was given up has queued, before host memory that it reads may change.
  void settle();

  // Host memory of the tables, and of the settings of later calls where those are not of the first call's kind.
  [[nodiscard]] const std::map<std::string, HostTensor>& tables() const { return tables_.tensors; }
  [[nodiscard]] const std::map<std::string, HostTensor>& settings() const { return settings_; }
  // The widths of the first call and of the later ones.
  void put_widths(std::int64_t first, std::int64_t later);

  // Sends those up, with what the first call's program has been given.
  void begin();
  // Makes calls, the first one among them if none has been made, and looks how far they came.
  void run();

  // As the last look found it: a number an image.
  [[nodiscard]] const std::int64_t* progress(const char* name) const;
  // The tokens known so far, (images, cells).
  const std::int64_t* fetch_known();

private:
  std::unique_ptr<Program> between(std::int32_t profile, const Program& fed, const Contract& contract,
                                   const Sizes& sizes, const Places& width);

  Gpu& gpu_;
  LoadedEngine& loaded_;
  Steps steps_;
  Block tables_, width_;                  // the latter: of the first call
  std::array<Block, 2> known_, progress_; // the two states
  std::array<Places, 2> turns_;           // where that is read, and written
  std::map<std::string, HostTensor> settings_;
  std::unique_ptr<Program> behind_first_, behind_later_; // the former: NULL where it is the latter
  const Places nowhere_;
  std::unique_ptr<Launch> beginning_, going_on_;
  bool begun_ = false;
  bool queued_ = false;  // work that has not been waited for
  bool fetched_ = false; // the tokens, since the last call
};

} // namespace arforge
