#include "conditioner.h"

#include "request.h"
#include "text.h"

namespace arforge {

void check_asked(const Request& request, const Bundle& bundle) {
  const ModelFacts& model = bundle.model;
  std::string named;
  const std::pair<const char*, bool> kinds[] = {
      {"classes", !request.classes.empty()}, {"features", !request.features.empty()}, {"ids", !request.ids.empty()}};
  int given = 0;
  for (const auto& [name, there] : kinds) {
    if (there) {
      named += text(given++ > 0 ? " and " : "", name);
    }
  }
  if (given > 1) {
    throw Error(Code::request, text(named, " are given: give one of classes, features, ids"));
  }
  if (given == 0) {
    throw Error(Code::request, text("no ", conditioned(model) ? "features" : "classes", " given: name at least one"));
  }
  if (!request.features.empty()) {
    check_features(request.features, model);
  } else if (!request.ids.empty()) {
    check_ids(request.ids, bundle);
  } else if (conditioned(model)) {
    throw Error(Code::request, text("this ", model.family,
                                    " model takes prompts, not classes: say in words what to draw, here as the "
                                    "features of a text encoder, or the ids of tokens"));
  } else {
    check_classes(request.classes, model);
  }
}

Conditions Conditioner::conditions(const Request& request) {
  if (!request.classes.empty()) {
    return class_conditions(bundle_.model, request.classes);
  }
  if (request.ids.empty()) {
    return graph_.conditions(request.features);
  }
  const auto encoded = encoder_.features(request.ids);
  std::vector<Features> features;
  features.reserve(encoded.size());
  for (std::size_t index = 0; index < encoded.size(); index++) {
    features.push_back({encoded[index]->data(), request.ids[index].length, features_condition(bundle_.model)->width});
  }
  return graph_.conditions(features);
}

} // namespace arforge
