// What makes the calls of a plan that runs ahead on drafts one after another on a device, which tells how far it is.
#pragma once

#include <cstdint>
#include <vector>

#include "step_graph.h"

namespace arforge {

// What a batch of a plan differs in, by the names of `loop_contract`, of the request's images and rows.
struct LoopInputs {
  std::vector<std::int64_t> line_tokens;        // (inputs) of those that are no cell's
  std::vector<float> line_guidance;             // (images, inputs)
  std::vector<float> cell_uniforms, cell_noise; // (images, cells), or a number for each token; one is empty
  std::vector<std::int64_t> first_tokens;       // (rows)
  std::vector<std::int64_t> moved;              // (rows)
  std::vector<std::uint8_t> seen;               // (rows, slots) of prompts; empty where they have none
};

// Asked for when a batch is prepared, and used up by it. But for the first, no function allocates anything.
class DraftLoop {
public:
  DraftLoop() = default;
  DraftLoop(const DraftLoop&) = delete;
  DraftLoop& operator=(const DraftLoop&) = delete;
  virtual ~DraftLoop() = default;

  // To be filled before `begin`; all zero.
  virtual LoopInputs& inputs() = 0;
  // `first`: the buffers of the first call, filled, whose settings are those of all calls.
  virtual void begin(const StepBuffers& first) = 0;
  // Some calls, from where the last ones ended. Throws Error (engine) if the runtime fails.
  virtual void run() = 0;
  // Inputs of the line that an image has right in its cache, and the calls that it took to get there.
  [[nodiscard]] virtual std::int64_t place(std::int64_t image) const = 0;
  [[nodiscard]] virtual std::int64_t passes(std::int64_t image) const = 0;
  // What came where a token of an image should, at which all images stopped; 0: nothing.
  [[nodiscard]] virtual std::int64_t fault(std::int64_t image) const = 0;
  // The tokens of an image's cells, drafts among them.
  virtual const std::int64_t* tokens(std::int64_t image) = 0;
};

} // namespace arforge
