// Calls of a TensorRT step whose schedule is a table, one after another in CUDA graphs, with the table graph between
// them (`table_graph.h`). A plan's tables stay on the device until another plan comes.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/tensorrt_launch.h"
#include "backends/tensorrt_program.h"
#include "step_graph.h"
#include "table_graph.h"

namespace arforge {

using CallKind = std::pair<std::int64_t, std::int64_t>; // width and queries of a call

// The calls of batches of one number of images.
//
// All kinds of step read their inputs at the same places, where the table graph writes them, and leave what they sample
// at one place, where it reads that. The state is there twice: a pass reads one and writes the other.
class TensorRTTable {
public:
  // Each call of a plan: its step, and the table graph behind it.
  struct Calls {
    std::vector<Program*> steps, behind;
  };

  // `loaded`: the table graph's engine. `sizes`: of what the contract leaves open, the largest of each. `settings`:
  // those inputs of the step that no call changes.
  TensorRTTable(Gpu& gpu, LoadedEngine& loaded, Contract contract, Sizes sizes, const Block::Kinds& settings);

  // Whether a step has settings of the same sizes.
  [[nodiscard]] bool takes(const Program& step) const;

  // The table graph before a call of that kind. Throws Error (engine) unless the engine is of the contract.
  Program& between(const CallKind& kind, std::int32_t profile);

  // Calls from `first` to `last`, of which a launch has so many that capturing it is no great matter.
  [[nodiscard]] std::vector<Launch*> launches(const Calls& calls, std::int64_t first, std::int64_t last);
  // Frees the oldest launches, but for those of the plan that comes next.
  void forget_launches(const std::vector<Launch*>& kept);

  // Waits for what a batch that was given up has queued, before host memory that it reads may change.
  void settle();
  // Makes a plan's tables those of the next batches.
  void place(const Plan& plan);

  // Host memory of what a batch has for its own, and of its tokens before the first call and now.
  Block& batch() { return batch_; }
  Block& settings() { return settings_; }
  Block& known() { return known_[0]; }

  // Sends those up and feeds the first call. `first`: the table graph before that.
  void begin(Program& first);
  // Makes the calls of these launches, the last of which is `done` then; `last`: the tokens are fetched as well.
  void run(const std::vector<Launch*>& launches, std::int64_t done, bool last);

  [[nodiscard]] std::int64_t done() const { return done_; }
  [[nodiscard]] const std::int64_t* progress(const std::string& name) const;
  // The tokens known so far, (rows, columns).
  const std::int64_t* fetch_known();

private:
  using Key = std::pair<std::int64_t, std::vector<Program*>>; // which state is the present one; programs

  struct NamedLaunch {
    Key key;
    std::unique_ptr<Launch> launch;
  };

  [[nodiscard]] static std::size_t turn(std::int64_t done) { return static_cast<std::size_t>((1 + done) % 2); }
  Launch& launch(Key key);

  Gpu& gpu_;
  LoadedEngine& loaded_;
  Contract contract_;
  Sizes sizes_;
  Block tables_, batch_, settings_;
  std::vector<Block> known_, progress_; // the two states
  Places fed_;                          // of a step
  Places placed_;                       // of the table graph, but for the state
  std::vector<Places> turns_;           // where that is read, and written
  std::map<CallKind, std::unique_ptr<Program>> between_;
  std::list<NamedLaunch> launches_;                       // the latest used first
  std::map<const Program*, std::unique_ptr<Places>> own_; // of a step's tensors in a launch
  std::uint64_t plan_ = 0;                                // whose tables lie on the device
  bool queued_ = false;                                   // work that has not been waited for
  std::int64_t done_ = 0;                                 // calls
  std::int64_t fetched_ = -1;                             // how many were when the tokens were fetched
};

} // namespace arforge
