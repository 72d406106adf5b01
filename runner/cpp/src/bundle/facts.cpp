#include "bundle/facts.h"

#include "arforge.hpp"
#include "text.h"

namespace arforge {

const char* kind_of(const Condition& condition) {
  return std::holds_alternative<ClassCondition>(condition)      ? "class"
         : std::holds_alternative<FeaturesCondition>(condition) ? "features"
                                                                : "ids";
}

const ClassCondition& class_condition(const ModelFacts& model) {
  const auto* condition = std::get_if<ClassCondition>(&model.condition);
  if (condition == nullptr) {
    throw Error(Code::request,
                text("this ", model.family, " model takes a prompt (", kind_of(model.condition), "), not a class"));
  }
  return *condition;
}

} // namespace arforge
