// From what a request asks for, classes, features or ids, to the conditions of its images.
#pragma once

#include "conditions.h"
#include "text_encoder.h"

namespace arforge {

// Throws Error (request) unless a request asks by just one of them, and for what the bundle takes.
void check_asked(const Request& request, const Bundle& bundle);

// A bundle's text encoder and condition graph, where it has them.
class Conditioner {
public:
  Conditioner(const Bundle& bundle, const Options& options)
      : bundle_(bundle), encoder_(bundle, options), graph_(bundle, options) {}

  // One for each image of a request that `check_asked` finds right. `guided`: whether unconditional rows will run; else
  // what those would see may be missing. Throws Error (request) for prompts that the model does not take.
  Conditions conditions(const Request& request, bool guided);

private:
  const Bundle& bundle_;
  TextEncoder encoder_;
  ConditionGraph graph_;
};

} // namespace arforge
