// What stands before the images of a request: classes, or prompts, as the decoder takes them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arforge.hpp"
#include "backends/onnxruntime_session.h"
#include "bundle/bundle.h"
#include "id_prompts.h"

namespace arforge {

// What one row of a step has before its image. Prompts are equal if a step cannot tell them apart.
struct Prompt {
  std::int64_t token; // the id that schedules feed as the condition: a class, or the first beyond the step's table
  std::shared_ptr<const std::vector<float>> rows; // (length, dim), the last is that token's; NULL for a class
  std::int64_t length = 0;
  bool keep = false;         // whether later requests are likely to have it too
  std::int64_t together = 0; // how many of its first rows see each other; the others see what stands before them

  // How many of its rows stand before the condition token.
  [[nodiscard]] std::int64_t before() const { return length == 0 ? 0 : length - 1; }
  bool operator==(const Prompt& other) const;
};

// How many slots of caches prompts fill, a prompt a row.
std::int64_t slots_before(const std::vector<Prompt>& prompts);

// Those of several images, one an image.
struct Conditions {
  std::vector<Prompt> conditional, unconditional;

  // A prompt a row of a step: those of `images` images from `first` on, then where `guided` the unconditional ones.
  [[nodiscard]] std::vector<Prompt> rows(std::int64_t first, std::int64_t images, bool guided) const;

  // Of their prompts, the rows before the condition token.
  [[nodiscard]] std::int64_t longest() const;
};

// Cache slots before a schedule's own, for prompts of up to `longest` rows before the condition token. They grow in
// steps of 128, so that an image's neighbours do not move its own sums: in blocks of that many, zeros before change
// nothing. Short prompts and long ones get as many where the model has no more than that.
std::int64_t prompt_slots(const ModelFacts& model, std::int64_t longest);

// Classes, whose ids the step's own table holds.
Conditions class_conditions(const ModelFacts& model, const std::vector<std::int64_t>& classes);

// Throws Error (request) for features that the model does not take.
void check_features(const std::vector<Features>& features, const ModelFacts& model);

// A bundle's graph from features or ids to rows of a condition, opened when it is first used.
class ConditionGraph {
public:
  ConditionGraph(const Bundle& bundle, const Options& options);

  // One image a prompt. Each prompt passes alone, so that its rows depend on nothing else.
  Conditions of_features(const std::vector<Features>& features);
  Conditions of_ids(const IdPrompts& prompts);

private:
  using Rows = std::shared_ptr<const std::vector<float>>; // (length, dim)

  std::vector<Rows> pass(const Ort::Value& prompt, std::int64_t length);
  std::vector<Prompt> pass_ids(const std::vector<TokenIds>& prompts, bool keep, bool bidirectional);

  const Bundle& bundle_;
  Options options_;
  Contract contract_; // empty for a model that takes classes
  Ort::Env env_;
  std::unique_ptr<Ort::Session> session_;
};

} // namespace arforge
