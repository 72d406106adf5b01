// What the parser's library and the engine's know of each other.
#pragma once

#include <NvInferRuntime.h>

// A refitter that the parser tells where weights are.
class Refitter : public nvinfer1::IRefitter {
public:
  // Whether there are any.
  virtual bool take(const char* file) noexcept = 0;
};
