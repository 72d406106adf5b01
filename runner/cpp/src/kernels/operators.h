// The kernels as operators of ONNX Runtime.
#pragma once

#include <string>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

namespace arforge::kernels {

// Has a session know the operators. Throws Ort::Exception.
void add_operators(OrtSessionOptions* options);

// Names the product wherever a graph, as the bytes of its file, has ONNX Runtime's. Returns whether it has any
// operator.
bool name_operators(std::string& graph);

} // namespace arforge::kernels
