// From what a request asks for, classes or features, to the conditions of its images.
#pragma once

#include "conditions.h"

namespace arforge {

// Throws Error (request) unless a request asks by just one of them, and for what the model takes.
void check_asked(const Request& request, const ModelFacts& model);

// A bundle's condition graph, where it has one.
class Conditioner {
public:
  Conditioner(const Bundle& bundle, const Options& options) : bundle_(bundle), graph_(bundle, options) {}

  // One for each image of a request that `check_asked` finds right.
  Conditions conditions(const Request& request) {
    return request.features.empty() ? class_conditions(bundle_.model, request.classes)
                                    : graph_.conditions(request.features);
  }

private:
  const Bundle& bundle_;
  ConditionGraph graph_;
};

} // namespace arforge
