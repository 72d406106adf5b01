#include "backends/engine_graphs.h"

#include "backends/onnxruntime_session.h"
#include "text.h"

namespace arforge {

bool runs_own(const EngineIdentity& identity, const Options& options) {
  return options.provider == "cpu" && !identity.own_graph.empty() && use_kernels();
}

// An engine's own graph has what the CPU provider does best; others are given the one that it was made from.
const std::filesystem::path& graph_for(const EngineIdentity& identity, const Options& options) {
  if (options.provider == "cpu") {
    return runs_own(identity, options) ? identity.own_graph : identity.graph;
  }
  if (identity.standard.empty()) {
    throw Error(Code::engine,
                text("an ", options.precision, " engine with weights of its own is for provider cpu, not ",
                     options.provider, ": use fp32, or `arforge build --precision int8 --quantization static`"));
  }
  return identity.standard;
}

std::vector<MeasuredWindow> measured_windows(const EngineIdentity& identity, const Options& options) {
  const bool exact = runs_own(identity, options) || identity.exact_width > 0;
  return options.provider == "cpu" && exact ? identity.jacobi : std::vector<MeasuredWindow>{};
}

} // namespace arforge
