#include "conditioner.h"

#include "request.h"
#include "text.h"

namespace arforge {
namespace {

// Throws Error (request) for what goes with models that read ids of prompts.
void check_without_ids(const Request& request, const ModelFacts& model) {
  const std::pair<const char*, bool> settings[] = {{"unconditional", !request.unconditional.empty()},
                                                   {"negative ids", !request.negative_ids.empty()},
                                                   {"prefill", !request.prefill.empty()}};
  for (const auto& [name, there] : settings) {
    if (there) {
      throw Error(Code::request, text("this ", model.family, " model knows no ", name, ": leave it out"));
    }
  }
}

} // namespace

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
    const char* const usual = ids_condition(model) != nullptr ? "ids" : conditioned(model) ? "features" : "classes";
    throw Error(Code::request, text("no ", usual, " given: name at least one"));
  }
  if (ids_condition(model) != nullptr) {
    if (request.ids.empty()) {
      throw Error(Code::request, text("this ", model.family, " model takes prompts, in words or ids, not ", named,
                                      ": say in words what to draw, here as the ids of its own tokens"));
    }
    return;
  }
  check_without_ids(request, model);
  if (!request.features.empty()) {
    check_features(request.features, model);
  } else if (!request.ids.empty()) {
    check_encodable(request.ids, bundle);
  } else if (conditioned(model)) {
    throw Error(Code::request, text("this ", model.family,
                                    " model takes prompts, not classes: say in words what to draw, here as the "
                                    "features of a text encoder, or the ids of tokens"));
  } else {
    check_classes(request.classes, model);
  }
}

Conditions Conditioner::conditions(const Request& request, bool guided) {
  if (!request.classes.empty()) {
    return class_conditions(bundle_.model, request.classes);
  }
  if (const IdsCondition* own = ids_condition(bundle_.model)) {
    return graph_.of_ids(id_prompts(request, *own, guided));
  }
  if (request.ids.empty()) {
    return graph_.of_features(request.features);
  }
  const auto encoded = encoder_.features(request.ids);
  std::vector<Features> features;
  features.reserve(encoded.size());
  for (std::size_t index = 0; index < encoded.size(); index++) {
    features.push_back({encoded[index]->data(), request.ids[index].length, features_condition(bundle_.model)->width});
  }
  return graph_.of_features(features);
}

} // namespace arforge
