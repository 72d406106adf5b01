// Products with stored matrices, as operators of ONNX Runtime.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

namespace arforge::kernels {

// What ONNX Runtime's MatMulNBits computes, under a name of as many letters.
const OrtCustomOp* product_operator();

// The first two products of a gated feed-forward layer: silu(x A) * (x B), of matrices of one shape.
const OrtCustomOp* gated_operator();

} // namespace arforge::kernels
