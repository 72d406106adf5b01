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

} // namespace arforge
