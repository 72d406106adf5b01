// From tokens to images and back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arforge.hpp"
#include "backends/onnxruntime_session.h"
#include "bundle/bundle.h"

namespace arforge {

class ImageCodec {
public:
  using Receive = decltype(Request::receive);

  ImageCodec() = default;
  ImageCodec(const ImageCodec&) = delete;
  ImageCodec& operator=(const ImageCodec&) = delete;
  virtual ~ImageCodec() = default;

  // Gives `receive` the pixels (images, height, width, 3) of tokens (images, rows, columns).
  virtual void decode(const std::int64_t* tokens, std::int64_t images, std::int64_t rows, std::int64_t columns,
                      const Receive& receive) = 0;

  // The reverse.
  virtual std::vector<std::int64_t> encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                           std::int64_t width) = 0;
};

// The graphs of a bundle's image tokenizer, on the CPU; each is opened when it is first used.
class OnnxRuntimeCodec : public ImageCodec {
public:
  OnnxRuntimeCodec(const Bundle& bundle, const Options& options);

  void decode(const std::int64_t* tokens, std::int64_t images, std::int64_t rows, std::int64_t columns,
              const Receive& receive) override;
  std::vector<std::int64_t> encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                   std::int64_t width) override;

private:
  Ort::Session& session(const std::string& graph, std::unique_ptr<Ort::Session>& session);

  const Bundle& bundle_;
  Options options_;
  Ort::Env env_;
  std::unique_ptr<Ort::Session> decoder_, encoder_;
};

} // namespace arforge
