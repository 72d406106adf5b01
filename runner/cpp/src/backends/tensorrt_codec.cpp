#include "backends/tensorrt_codec.h"

#include <algorithm>
#include <optional>

#include "text.h"

namespace arforge {

TensorRTCodec::TensorRTCodec(const Bundle& bundle, TensorRTEngine& engine, const Options& options)
    : bundle_(bundle), engine_(engine), other_(bundle, options) {}

void TensorRTCodec::decode(const std::int64_t* tokens, std::int64_t images, std::int64_t rows, std::int64_t columns,
                           const Receive& receive) {
  const std::vector<std::int64_t>& batches = engine_.batches();
  const bool own_grid = rows == bundle_.model.rows && columns == bundle_.model.columns;
  const std::optional<std::string>& decoder_file = engine_.identity().decoder;
  if (!decoder_file || !own_grid || images > batches.back()) {
    other_.decode(tokens, images, rows, columns, receive);
    return;
  }
  const std::int64_t batch = *std::lower_bound(batches.begin(), batches.end(), images);
  Program& decoder = program(*decoder_file, batch);
  auto* const into = reinterpret_cast<std::int64_t*>(decoder.input("tokens")->data);
  const std::int64_t cells = rows * columns;
  for (std::int64_t image = 0; image < batch; image++) {
    std::copy_n(tokens + std::min(image, images - 1) * cells, cells, into + image * cells);
  }
  decoder.run();
  const HostTensor& pixels = *decoder.output("images");
  receive(pixels.data, images, pixels.shape[1], pixels.shape[2]);
}

std::vector<std::int64_t> TensorRTCodec::encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                                std::int64_t width) {
  return other_.encode(pixels, images, height, width);
}

Program& TensorRTCodec::program(const std::string& file, std::int64_t batch) {
  const std::filesystem::path path = bundle_.root / std::filesystem::u8path(file);
  if (decoder_ == nullptr) {
    decoder_ = std::make_unique<LoadedEngine>(path, engine_.library(), engine_.gpu());
  }
  std::unique_ptr<Program>& made = programs_[batch];
  if (made == nullptr) {
    const std::vector<std::int64_t>& batches = engine_.batches();
    const auto profile = std::find(batches.begin(), batches.end(), batch) - batches.begin();
    std::unique_ptr<Program> opened = decoder_->program(static_cast<std::int32_t>(profile), {});
    const HostTensor* const tokens = opened->input("tokens");
    const HostTensor* const pixels = opened->output("images");
    const std::vector<std::int64_t> given = {batch, bundle_.model.rows, bundle_.model.columns};
    if (tokens == nullptr || tokens->type != Type::int64 || tokens->shape != given || pixels == nullptr ||
        pixels->type != Type::uint8 || pixels->shape.size() != 4 || pixels->shape[0] != batch ||
        pixels->shape[3] != 3) {
      throw Error(Code::engine, text(path.string(), " does not decode images of this bundle: rebuild it with `",
                                     build_command(bundle_, engine_.identity()), "`"));
    }
    made = std::move(opened);
  }
  return *made;
}

} // namespace arforge
