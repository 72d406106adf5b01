// The contract of the loop graph, between two calls of a TensorRT step that runs ahead on drafts: from what was sampled
// to what is fed next.
//
// It is no graph of a bundle but of an engine, and knows a line of inputs by tables that go up once a batch. `images`,
// `rows` and `width` are those of the call that comes next, `fed` the width of the one that has run.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "plan.h"
#include "step_graph.h"

namespace arforge {

// What the numbers of a loop graph are, beside those of the model.
struct LoopSizes {
  std::int64_t inputs; // of the line
  std::int64_t slots;  // of the caches
  bool one_mask;       // whether the step takes one mask for all rows
  bool own_mask;       // or makes its own
};

// The line of a plan that a device can run ahead on drafts of by itself, in which every input sees all before it; NULL
// of others.
const Line* line_of(const Plan& plan);

// `graph`: the kind of step graph.
Contract loop_contract(const ModelFacts& model, const LoopSizes& sizes, const std::string& graph);

// What all batches of a plan that is such a line have in common, by the names of `loop_contract`.
struct LineTables {
  std::map<std::string, std::vector<std::int64_t>> numbers;

  LineTables(const Plan& plan, const Line& line);
};

} // namespace arforge
