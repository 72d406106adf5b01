// From the ids of a prompt's tokens to the features that a model reads: the bundle's text encoder.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "arforge.hpp"
#include "backends/onnxruntime_session.h"
#include "bundle/bundle.h"

namespace arforge {

// Throws Error (request) for ids that the model does not take, or if the bundle has no text encoder.
void check_encodable(const std::vector<Ids>& ids, const Bundle& bundle);

// The graph is opened when the first prompt comes: a text encoder is as large as a model.
class TextEncoder {
public:
  TextEncoder(const Bundle& bundle, const Options& options);

  // The features (length, width) of each prompt, whose ids `check_encodable` finds right. Each runs alone and without
  // padding, so that its features depend on nothing else; equal ones run once. Throws Error (engine, numerics).
  std::vector<std::shared_ptr<const std::vector<float>>> features(const std::vector<Ids>& ids);

private:
  std::shared_ptr<const std::vector<float>> run(const Ids& ids);

  const Bundle& bundle_;
  Options options_;
  Ort::Env env_;
  std::unique_ptr<Ort::Session> session_;
};

} // namespace arforge
