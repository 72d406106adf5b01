#include "numerics.h"

namespace arforge {

std::int64_t spoilt_image(const Decoding& decoding, const StepBuffers& buffers, const ModelFacts& model,
                          std::int64_t images) {
  const auto outputs = static_cast<std::int64_t>(buffers.next_tokens.size()) / images;
  for (std::int64_t image = 0; image < images; image++) {
    for (const std::int64_t row : decoding.outputs()) {
      const std::int64_t token = buffers.next_tokens[static_cast<std::size_t>(image * outputs + row)];
      if (token < 0 || token >= model.vocabulary) {
        return image;
      }
    }
  }
  return -1;
}

const char* advice(const Engine& engine) {
  return engine.facts().cache_type == Type::float16 ? "use a bf16 or fp32 engine, which reach further than fp16"
                                                    : "check the weights: arforge verify";
}

} // namespace arforge
