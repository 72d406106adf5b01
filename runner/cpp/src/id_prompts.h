// Prompts of models that read ids of a vocabulary of their own: what begins the image, and what stands for no prompt.
#pragma once

#include <cstdint>
#include <vector>

#include "arforge.hpp"
#include "bundle/facts.h"

namespace arforge {

using TokenIds = std::vector<std::int64_t>; // a whole prompt, template included: (length)

// Those of several images, one an image.
struct IdPrompts {
  std::vector<TokenIds> conditional, unconditional;
  bool bidirectional; // a prompt's ids see each other, but for those that begin the image
};

// The prompts of a request that asks by ids. `guided`: whether some image has unconditional rows; else what those would
// see may be missing. Throws Error (request) for what the model does not take.
IdPrompts id_prompts(const Request& request, const IdsCondition& condition, bool guided);

} // namespace arforge
