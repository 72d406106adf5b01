// The kernels as an operator of ONNX Runtime.
#pragma once

#include <string>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

namespace arforge::kernels {

// Has a session know the operator. Throws Ort::Exception.
void add_operators(OrtSessionOptions* options);

// Names the operator wherever a graph, as the bytes of its file, has ONNX Runtime's. Returns how often.
int name_operators(std::string& graph);

} // namespace arforge::kernels
