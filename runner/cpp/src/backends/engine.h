// What the runner asks of an engine: memory to fill, and one call a step.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "backends/draft_loop.h"
#include "backends/table_loop.h"
#include "schedules/jacobi_windows.h"
#include "step_graph.h"

namespace arforge {

struct Plan; // of plan.h

// What slots of a row hold, one array a cache: (kv_heads, slots, head_size), or slots first where an engine has it so.
using CacheContent = std::vector<std::vector<std::uint8_t>>;

struct EngineFacts {
  std::vector<std::int64_t> widths;         // of steps that it was built for; none: any
  std::vector<std::int64_t> prefill_widths; // of passes of prompts, likewise
  std::int64_t largest_batch;               // images that it decodes together at most; 0: any number
  std::int64_t exact_width; // the widest step in which a token gets the bits that it gets alone; 0: not known
  std::int64_t growth;      // calls are given the slots in use, rounded up to a multiple of it; 0: always all
  bool one_mask;            // whether all rows of a step must see the same slots
  bool own_mask; // whether the graph makes its mask: then all inputs see all before them, whatever the masks say
  Type cache_type;
  std::vector<MeasuredWindow> measured = {}; // how far it may run ahead with next-token's tokens, and what that gains
};

class Engine {
public:
  explicit Engine(EngineFacts facts) : facts_(std::move(facts)) {}
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  [[nodiscard]] const EngineFacts& facts() const { return facts_; }

  // Makes caches and buffers ready for steps of these shapes, the first `zero_slots` slots zero: nothing is allocated
  // after it, but for binding the memory of a width to a number of slots that is not among them. The first step has the
  // first shape.
  virtual void prepare(const Extent& extent, const std::vector<Shape>& shapes, std::int64_t zero_slots) = 0;

  // Whether caches of steps of that `lockstep` have fewer bits than those of others: then they cannot stand for each
  // other.
  [[nodiscard]] virtual bool has_low_caches(std::int64_t /*lockstep*/) const { return false; }

  // The memory of one kind of step, whose width and queries were prepared for.
  virtual StepBuffers& buffers(const Shape& shape) = 0;

  // Forgets what the caches hold: NaN in a slot that no mask lets through would still reach the next request.
  virtual void clear() = 0;

  // Executes one step of that shape from its buffers.
  virtual void run(const Shape& shape, bool first) = 0;

  // What makes the calls of the batch that is prepared for, by a plan whose steps are settled; NULL: the host does.
  virtual std::unique_ptr<TableLoop> table_loop(const Plan& /*plan*/) { return nullptr; }
  // Likewise of a plan that runs ahead on drafts.
  virtual std::unique_ptr<DraftLoop> draft_loop(const Plan& /*plan*/) { return nullptr; }

  // Caches of one row from slot `first` on; what is written must lie in slots that were prepared as zero slots.
  [[nodiscard]] virtual CacheContent read_cache(std::int64_t row, std::int64_t first, std::int64_t count) = 0;
  virtual void write_cache(std::int64_t row, std::int64_t first, const CacheContent& content) = 0;

protected:
  EngineFacts facts_;
};

} // namespace arforge
