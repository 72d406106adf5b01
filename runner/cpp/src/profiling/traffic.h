// What a step must move and compute, whatever the engine; from the manifest and the plan.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "plan.h"

namespace arforge {

// One call of the engine.
struct Call {
  std::int64_t width, queries;
  std::int64_t live_slots; // of the schedule's own, that its inputs can see
};

struct Traffic {
  std::int64_t weights; // bytes that every step reads: all but the table of embeddings
  std::int64_t slot;    // bytes of one cache slot of one row, over all reads of a step
  std::int64_t weight_count;

  // Bytes of keys and values that the call's inputs can see.
  [[nodiscard]] double cache_bytes(const Call& call, std::int64_t rows) const;
  // Two for each weight and token; where a model has queries, half of the layers see them in place of tokens.
  [[nodiscard]] double operations(const Call& call, std::int64_t rows) const;
};

// Every layer reads one cache, ARPG's later half the shared one. Engines in blocks keep embeddings as floats.
Traffic traffic_of(const Bundle& bundle, const std::string& target, const std::string& precision);

// The version of the library that built an engine, as its identity names it; empty where none is built.
std::string library_of(const Bundle& bundle, const std::string& target, const std::string& precision);

// What the calls of a result saw: by the plan, or at an own pace what the slowest image has behind it, and the call's
// inputs. `done`: how much of the plan's length all images had behind them after each.
std::vector<Call> calls_of(const Plan& plan, const Result& result, const std::vector<std::int64_t>& done);

} // namespace arforge
