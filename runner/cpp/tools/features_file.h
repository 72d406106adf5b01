// Prompts in .npy files: features that somebody else's text encoder gave, or the ids of tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arforge.hpp"

struct FeaturesFile {
  std::vector<float> values; // (prompts, tokens, width)
  std::vector<arforge::Features> prompts;
};

// Reads a file of floats [prompts, tokens, width]; `mask`: a file [prompts, tokens] of ones, for the rows of a prompt,
// and then zeros, as encoders give it; empty: all rows count. Throws arforge::Error (request) for files that are no
// such arrays. What the model does not take, the runner refuses.
FeaturesFile read_features(const std::string& path, const std::string& mask);

struct IdsFile {
  std::vector<std::int64_t> values; // (prompts, tokens)
  std::vector<arforge::Ids> prompts;
};

// The same for ids, a file of int64 or int32 [prompts, tokens], or [tokens] of one.
IdsFile read_ids(const std::string& path, const std::string& mask);
