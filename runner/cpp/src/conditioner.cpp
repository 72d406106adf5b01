#include "conditioner.h"

#include "request.h"
#include "text.h"

namespace arforge {

void check_asked(const Request& request, const ModelFacts& model) {
  if (!request.classes.empty() && !request.features.empty()) {
    throw Error(Code::request, "classes and features are given: give one of classes, features");
  }
  if (images_of(request) == 0) {
    throw Error(Code::request, text("no ", conditioned(model) ? "features" : "classes", " given: name at least one"));
  }
  if (!request.features.empty()) {
    check_features(request.features, model);
  } else if (conditioned(model)) {
    throw Error(Code::request, text("this ", model.family,
                                    " model takes prompts, not classes: say in words what to draw, here as the "
                                    "features of a text encoder"));
  } else {
    check_classes(request.classes, model);
  }
}

} // namespace arforge
