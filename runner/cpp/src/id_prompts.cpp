#include "id_prompts.h"

#include <algorithm>

#include "request.h"
#include "text.h"

namespace arforge {
namespace {

// The word, or `usual` where none is given; throws unless it is one of these.
std::string word(const char* what, const std::string& given, const std::string& usual,
                 const std::vector<std::string>& words) {
  const std::string& chosen = given.empty() ? usual : given;
  if (std::find(words.begin(), words.end(), chosen) == words.end()) {
    std::string known = words.front();
    for (std::size_t index = 1; index < words.size(); index++) {
      known += " or " + words[index];
    }
    throw Error(Code::request, text(what, " '", chosen, "' is unknown: use ", known));
  }
  return chosen;
}

// Whole prompts: the ids that begin the image are put behind those that lack them.
std::vector<TokenIds> whole_prompts(const std::vector<Ids>& given, const IdsCondition& condition, const char* where) {
  check_ids(given, condition.slots, where);
  const auto start = condition.suffix.end() - condition.start;
  std::vector<TokenIds> prompts;
  for (std::size_t index = 0; index < given.size(); index++) {
    TokenIds prompt(given[index].values, given[index].values + given[index].length);
    const std::int64_t largest = *std::max_element(prompt.begin(), prompt.end());
    const std::string name = text(where, ": prompt ", index);
    if (largest >= condition.vocabulary) {
      throw Error(Code::request,
                  text(name, " holds ", largest, ", the model's ids are 0 to ", condition.vocabulary - 1));
    }
    const auto length = static_cast<std::int64_t>(prompt.size());
    if (length <= condition.start || !std::equal(start, condition.suffix.end(), prompt.end() - condition.start)) {
      prompt.insert(prompt.end(), start, condition.suffix.end());
    }
    prompts.push_back(std::move(prompt));
  }
  std::vector<Ids> completed;
  completed.reserve(prompts.size());
  for (const TokenIds& prompt : prompts) {
    completed.push_back({prompt.data(), static_cast<std::int64_t>(prompt.size())});
  }
  check_ids(completed, condition.slots, where);
  return prompts;
}

// The prompt with all ids replaced but the first and those that begin the image.
TokenIds padded(TokenIds prompt, const IdsCondition& condition) {
  if (!condition.padding) {
    throw Error(Code::request, "unconditional 'padded': this model has no padding token: use 'image' or 'negative'");
  }
  std::fill(prompt.begin() + 1, prompt.end() - condition.start, *condition.padding);
  return prompt;
}

// The request's own negative prompts, one an image; none where it has none.
std::vector<TokenIds> negative_prompts(const Request& request, const IdsCondition& condition, std::size_t images) {
  std::vector<TokenIds> found = whole_prompts(request.negative_ids, condition, "the negative ids");
  if (found.size() > 1 && found.size() != images) {
    throw Error(Code::request,
                text(found.size(), " negative prompts for ", images, " images: give one for all, or one an image"));
  }
  if (found.size() == 1) {
    found.resize(images, TokenIds(found.front()));
  }
  return found;
}

std::vector<TokenIds> unconditional_prompts(const Request& request, const IdsCondition& condition,
                                            const std::vector<TokenIds>& conditional) {
  std::vector<TokenIds> negative = negative_prompts(request, condition, conditional.size());
  const std::string& named = request.unconditional;
  if (!negative.empty() && !named.empty() && named != "negative") {
    throw Error(Code::request,
                text("a negative prompt is given, and unconditional '", named, "': leave one of them out"));
  }
  const std::string kind = negative.empty()
                               ? word("unconditional", named, condition.unconditional, {"padded", "image", "negative"})
                               : "negative";
  if (kind == "negative" && negative.empty() && condition.negative.empty()) {
    throw Error(Code::request,
                "unconditional rows see a negative prompt, and the bundle has none: give one (--negative-ids FILE), "
                "or ask for another kind (--unconditional)");
  }
  if (!negative.empty()) {
    return negative;
  }
  std::vector<TokenIds> found;
  found.reserve(conditional.size());
  for (const TokenIds& prompt : conditional) {
    found.push_back(kind == "padded"  ? padded(prompt, condition)
                    : kind == "image" ? TokenIds(prompt.end() - condition.start, prompt.end())
                                      : condition.negative);
  }
  return found;
}

} // namespace

IdPrompts id_prompts(const Request& request, const IdsCondition& condition, bool guided) {
  IdPrompts prompts{whole_prompts(request.ids, condition, "the ids"), {}, false};
  prompts.bidirectional = word("prefill", request.prefill, "causal", {"causal", "bidirectional"}) == "bidirectional";
  prompts.unconditional = guided ? unconditional_prompts(request, condition, prompts.conditional) : prompts.conditional;
  return prompts;
}

} // namespace arforge
