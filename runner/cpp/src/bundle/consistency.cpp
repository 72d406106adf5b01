#include "bundle/consistency.h"

#include <algorithm>

#include "text.h"

namespace arforge {
namespace {

std::string of_sizes(const ModelFacts& model) {
  if (model.caches > model.layers) {
    return text(model.caches, " caches for ", model.layers, " layers");
  }
  const std::int64_t before = std::max<std::int64_t>(model.prompt_limit() - 1, 0);
  const std::int64_t places = 1 + model.last_position() + (model.positions == "sequence" ? before : 0);
  return model.position_rows < places ? text(model.position_rows, " positions for ", places, " places") : "";
}

std::string of_classes(const ModelFacts& model, const ClassCondition& condition) {
  const std::int64_t last = condition.first_class + condition.classes - 1;
  if (model.vocabulary > condition.first_class || last >= condition.null_class) {
    return "class ids overlap image tokens or the null class";
  }
  if (model.labels && static_cast<std::int64_t>(model.labels->size()) != condition.classes) {
    return text(model.labels->size(), " labels for ", condition.classes, " classes");
  }
  return "";
}

std::string of_template(const IdsCondition& condition) {
  std::int64_t largest = condition.padding.value_or(0);
  for (const auto* ids : {&condition.prefix, &condition.suffix, &condition.negative}) {
    largest = ids->empty() ? largest : std::max(largest, *std::max_element(ids->begin(), ids->end()));
  }
  if (largest >= condition.vocabulary) {
    return text("prompts have the id ", largest, " of a vocabulary of ", condition.vocabulary);
  }
  const auto behind = static_cast<std::int64_t>(condition.suffix.size());
  if (condition.start < 1 || condition.start > behind) {
    return text("an image begins with ", condition.start, " of the ", behind, " ids behind a prompt");
  }
  const std::size_t longest = std::max(condition.prefix.size() + condition.suffix.size(), condition.negative.size());
  if (static_cast<std::int64_t>(longest) > condition.slots) {
    return text("prompts of ", condition.slots, " ids have no room for their own template, or for the negative one");
  }
  if (condition.unconditional == "padded" && !condition.padding) {
    return "unconditional prompts are padded, and there is no padding";
  }
  return "";
}

std::string of_condition(const ModelFacts& model) {
  if (const auto* classes = std::get_if<ClassCondition>(&model.condition)) {
    return of_classes(model, *classes);
  }
  if (model.labels) {
    return "labels, and no classes";
  }
  const IdsCondition* own = ids_condition(model);
  return own == nullptr ? "" : of_template(*own);
}

std::string of_specials(const ModelFacts& model) {
  std::int64_t taken = model.vocabulary - 1;
  if (const auto* classes = std::get_if<ClassCondition>(&model.condition)) {
    taken = std::max(taken, classes->null_class);
  }
  std::vector<std::int64_t> specials = model.specials;
  std::sort(specials.begin(), specials.end());
  if (!specials.empty() &&
      (specials.front() <= taken || std::adjacent_find(specials.begin(), specials.end()) != specials.end())) {
    return "special tokens overlap image tokens, the classes, or each other";
  }
  if (model.row_end && *model.row_end >= static_cast<std::int64_t>(specials.size())) {
    return text("row_end ", *model.row_end, " of ", specials.size(), " special tokens");
  }
  return "";
}

std::string of_images(const ModelFacts& model, const ImageTokenizerFacts& tokenizer) {
  if (tokenizer.codebook_size != model.vocabulary) {
    return text("image tokenizer has ", tokenizer.codebook_size, " codes, the model ", model.vocabulary, " tokens");
  }
  const std::int64_t height = model.rows * tokenizer.downsampling;
  const std::int64_t width = model.columns * tokenizer.downsampling;
  if (tokenizer.height != height || tokenizer.width != width) {
    return text("image size (", tokenizer.height, ", ", tokenizer.width, "), the grid makes (", height, ", ", width,
                ")");
  }
  return "";
}

} // namespace

std::string contradiction(const ModelFacts& model, const std::optional<ImageTokenizerFacts>& tokenizer) {
  for (const auto& part : {of_sizes, of_condition, of_specials}) {
    if (std::string problem = part(model); !problem.empty()) {
      return problem;
    }
  }
  return tokenizer ? of_images(model, *tokenizer) : "";
}

} // namespace arforge
