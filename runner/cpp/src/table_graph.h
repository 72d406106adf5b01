// The contract of the table graph, between two calls of a TensorRT step whose schedule is a table: what the first has
// sampled goes to the tokens known so far, and from those the second is fed.
//
// It is no graph of a bundle but of an engine, and knows a plan by tables that stay on the device from batch to batch.
// Calls count from 0; tables of inputs, and of outputs, have those of one call after those of another. `images`,
// `rows`, `width` and `queries` are those of the call that comes next, `drawn` has room for the outputs of any.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "plan.h"
#include "step_graph.h"

namespace arforge {

inline constexpr std::int64_t NO_CALL = -2; // decides a column that no call does; -1 is what was before the first

// The largest plan that a table graph has room for.
struct TableSizes {
  std::int64_t calls;
  std::int64_t inputs;  // of all calls, padded to the widths of an engine
  std::int64_t outputs; // of all calls
  std::int64_t most;    // outputs of one call
  std::int64_t columns; // cells, conditions and special tokens

  // Of one plan.
  static TableSizes of(const Plan& plan);
  [[nodiscard]] bool hold(const TableSizes& other) const;
};

// Whether the steps of a plan do not depend on what is sampled.
bool is_table(const Plan& plan);

// The output that a part of the state leaves as; whether an output is one.
std::string next_name(const std::string& state);
bool is_next(const std::string& output);

// `graph`: the kind of step graph. The step takes one mask for all rows, or makes its own, or has one a row.
Contract table_contract(const ModelFacts& model, const TableSizes& sizes, const std::string& graph, std::int64_t slots,
                        bool one_mask, bool own_mask);

// What all batches of a plan have in common, by the names of `table_contract`.
struct PlanTables {
  std::map<std::string, std::vector<std::int64_t>> numbers;
  std::vector<std::uint8_t> input_sees; // (inputs, slots of the plan)

  explicit PlanTables(const Plan& plan);
};

} // namespace arforge
