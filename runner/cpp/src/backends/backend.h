// What runs a bundle's graphs: the engine that steps, and what codes images beside it.
#pragma once

#include <memory>

#include "arforge.hpp"
#include "backends/engine.h"
#include "backends/image_codec.h"
#include "bundle/bundle.h"

namespace arforge {

struct Backend {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<ImageCodec> codec; // goes first
};

// The engine of the options' target and precision. Throws Error (engine) if it is not built, does not fit, or is for a
// library that this arforge was built without.
Backend open_backend(const Bundle& bundle, const Options& options);

} // namespace arforge
