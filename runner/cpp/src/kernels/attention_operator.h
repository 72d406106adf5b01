// Attention of a step over its caches, as an operator of ONNX Runtime, for caches of float32 and of int8.
//
// In one operator: the turning of queries and keys by their positions, the writing of keys and values into their
// caches, which stay where they are if they are bound so, and attention to the slots that a mask shows. Of a step's
// queries [rows, queries, ...] each gets the same bits in any company: with more rows or queries beside it, or slots
// behind it.
#pragma once

#include <array>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

namespace arforge::kernels {

std::array<const OrtCustomOp*, 2> attention_operators();

} // namespace arforge::kernels
