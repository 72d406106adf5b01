// Drawing by a number between 0 and 1, as an operator of ONNX Runtime.
//
// Given probabilities [..., choices] and numbers [...] it counts the choices up to which the probabilities, added up in
// their order in float32, come to no more than the number's share of their sum: what the standard operators of a step
// graph do (CumSum, LessOrEqual, ReduceSum), bit for bit.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

namespace arforge::kernels {

const OrtCustomOp* draw_operator();

} // namespace arforge::kernels
