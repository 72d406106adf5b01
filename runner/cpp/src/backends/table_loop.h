// What makes the calls of a plan one after another on a device, which keeps the tokens known so far.
#pragma once

#include <cstdint>
#include <vector>

#include "step_graph.h"

namespace arforge {

// What a batch of a plan differs in, by the names of `table_contract`, of the request's images and rows.
struct TableInputs {
  std::vector<std::int64_t> known;              // (rows, columns) before the first call
  std::vector<float> call_guidance;             // (images, calls)
  std::vector<float> cell_uniforms, cell_noise; // (images, cells), or a number for each token; one is empty
  std::vector<std::int64_t> moved;              // (rows)
  std::vector<std::uint8_t> seen;               // (rows, slots) of prompts; empty where they have none
};

// Asked for when a batch is prepared, and used up by it. But for the first, no function allocates anything.
class TableLoop {
public:
  TableLoop() = default;
  TableLoop(const TableLoop&) = delete;
  TableLoop& operator=(const TableLoop&) = delete;
  virtual ~TableLoop() = default;

  // To be filled before `begin`; all zero.
  virtual TableInputs& inputs() = 0;
  // `settings`: buffers of a step, of which only those count that no call changes.
  virtual void begin(const StepBuffers& settings) = 0;
  // Some calls, from where the last ones ended; gives how many are done. Throws Error (engine) if the runtime fails.
  virtual std::int64_t run() = 0;
  // What came where a token of an image should, and in which call; 0: nothing.
  [[nodiscard]] virtual std::int64_t fault(std::int64_t image) const = 0;
  [[nodiscard]] virtual std::int64_t fault_call(std::int64_t image) const = 0;
  // The tokens of a row known so far, in the plan's columns.
  virtual const std::int64_t* known(std::int64_t row) = 0;
};

} // namespace arforge
