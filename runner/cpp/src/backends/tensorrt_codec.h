// The image decoder as a TensorRT engine, beside the engine that steps; what that was not built for stays elsewhere.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "backends/image_codec.h"
#include "backends/tensorrt_engine.h"

namespace arforge {

// Decodes images of the model's own grid on the GPU of `engine`, which must outlive it. ONNX Runtime encodes, decodes
// other grids, and does all of it for an engine that was built without an image decoder.
class TensorRTCodec : public ImageCodec {
public:
  TensorRTCodec(const Bundle& bundle, TensorRTEngine& engine, const Options& options);

  void decode(const std::int64_t* tokens, std::int64_t images, std::int64_t rows, std::int64_t columns,
              const Receive& receive) override;
  std::vector<std::int64_t> encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                   std::int64_t width) override;

private:
  Program& program(const std::string& file, std::int64_t batch);

  const Bundle& bundle_;
  TensorRTEngine& engine_;
  OnnxRuntimeCodec other_;
  std::unique_ptr<LoadedEngine> decoder_;
  std::map<std::int64_t, std::unique_ptr<Program>> programs_; // by batch
};

} // namespace arforge
