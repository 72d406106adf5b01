// Which of an engine's graphs a machine opens.
#pragma once

#include <filesystem>
#include <vector>

#include "backends/engine.h"
#include "bundle/bundle.h"

namespace arforge {

// Whether arforge's own operators run the engine's steps.
bool runs_own(const EngineIdentity& identity, const Options& options);

// The graph for steps of any kind. Throws Error (engine) where the provider has none.
const std::filesystem::path& graph_for(const EngineIdentity& identity, const Options& options);

// How far that graph may run ahead: where a token of a wide step is known to get the bits that it gets alone.
std::vector<MeasuredWindow> measured_windows(const EngineIdentity& identity, const Options& options);

} // namespace arforge
