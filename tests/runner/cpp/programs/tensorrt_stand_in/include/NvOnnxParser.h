// Of TensorRT's ONNX parser what arforge uses; see NvInferRuntime.h.
#pragma once

#include "NvInferRuntime.h"

static constexpr std::int32_t NV_ONNX_PARSER_VERSION = 100;

namespace nvonnxparser {

class IParserRefitter {
public:
  virtual bool refitFromFile(const char* file) noexcept = 0;
  virtual ~IParserRefitter() noexcept = default;
};

} // namespace nvonnxparser

extern "C" void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, std::int32_t version) noexcept;
