// From tokens to images and back, on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arforge.hpp"
#include "backends/onnxruntime_session.h"
#include "bundle/bundle.h"

namespace arforge {

// The graphs of a bundle's image tokenizer; each is opened when it is first used.
class ImageCodec {
public:
  using Receive = decltype(Request::receive);

  ImageCodec(const Bundle& bundle, const Options& options);

  // Gives `receive` the pixels (images, height, width, 3) of tokens (images, rows, columns).
  void decode(const std::int64_t* tokens, std::int64_t images, std::int64_t rows, std::int64_t columns,
              const Receive& receive);

  // The reverse.
  std::vector<std::int64_t> encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                   std::int64_t width);

private:
  Ort::Session& session(const std::string& graph, std::unique_ptr<Ort::Session>& session);

  const Bundle& bundle_;
  Options options_;
  Ort::Env env_;
  std::unique_ptr<Ort::Session> decoder_, encoder_;
};

} // namespace arforge
