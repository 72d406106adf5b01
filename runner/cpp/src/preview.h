// Images as they come to be: what a step has decided, and how to show what it has not.
#pragma once

#include <cstdint>
#include <vector>

#include "arforge.hpp"
#include "backends/image_codec.h"
#include "canvas.h"
#include "decoding.h"

namespace arforge {

// What partial images are read from: a window of a canvas, and its decoding for some images.
struct Partial::Source {
  const Canvas& canvas;
  const Window& window;
  Decoding& decoding;
  ImageCodec* codec;          // NULL where the bundle has no image tokenizer
  std::int64_t first, images; // of the request
  std::int64_t steps;         // of each image, all windows together
};

// Those images when so many of their steps are done.
Partial partial_of(const Partial::Source& source, std::int64_t done);

// Tokens (images, rows, columns) in which each undecided cell has that of a nearest decided one, by cells passed. Where
// several are as near, the one above goes before those to the left, to the right and below; 0 where none is.
std::vector<std::int64_t> nearest(std::vector<std::int64_t> tokens, std::int64_t rows, std::int64_t columns);

} // namespace arforge
