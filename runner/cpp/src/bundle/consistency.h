// What a manifest's parts must have in common, beyond what its schema says of each.
#pragma once

#include <optional>
#include <string>

#include "bundle/facts.h"

namespace arforge {

// The first contradiction, in words; empty where there is none.
std::string contradiction(const ModelFacts& model, const std::optional<ImageTokenizerFacts>& tokenizer);

} // namespace arforge
