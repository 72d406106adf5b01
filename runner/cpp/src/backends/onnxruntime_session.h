// Sessions of ONNX Runtime, and its execution providers by name.
#pragma once

#include <filesystem>
#include <string>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include "arforge.hpp"
#include "step_graph.h"

namespace arforge {

// The process's environment; throws Error (engine) if the library is too old.
Ort::Env open_environment();

// A session over a graph file, or its `content` with the weights beside the file; throws Error (engine). `plain`: on
// the CPU whatever the options' provider.
Ort::Session open_session(Ort::Env& env, const std::filesystem::path& graph, const Options& options, bool plain,
                          std::string content = {});

// Whether the CPU's products in blocks are our own kernels': where it can run them, unless the environment says "off".
bool use_kernels();

// Throws Error (engine), naming `what`, unless the session's inputs and outputs are just those of the contract: its
// types, and its shapes, open where the contract has words.
void check_session(const Ort::Session& session, const Contract& contract, const std::string& what);

// The contract's type as ONNX Runtime names it.
ONNXTensorElementDataType element_type(Type type);

} // namespace arforge
