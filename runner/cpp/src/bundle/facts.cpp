#include "bundle/facts.h"

#include <algorithm>

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

const FeaturesCondition* features_condition(const ModelFacts& model) {
  return std::get_if<FeaturesCondition>(&model.condition);
}

const IdsCondition* ids_condition(const ModelFacts& model) { return std::get_if<IdsCondition>(&model.condition); }

std::int64_t ModelFacts::prompt_limit() const {
  const FeaturesCondition* features = features_condition(*this);
  const IdsCondition* own = ids_condition(*this);
  return features != nullptr ? features->slots : own != nullptr ? own->slots : 0;
}

std::int64_t ModelFacts::ids() const {
  std::int64_t largest = vocabulary - 1;
  for (const std::int64_t special : specials) {
    largest = std::max(largest, special);
  }
  if (const auto* classes = std::get_if<ClassCondition>(&condition)) {
    largest = std::max(largest, classes->null_class);
  }
  return 1 + largest;
}

} // namespace arforge
