// From tokens to images and back, on the CPU.
#include "backends/onnxruntime_engine.h"
#include "text.h"

namespace arforge {

Ort::Session& Engine::tokenizer(const char* graph, std::unique_ptr<Ort::Session>& session) {
  if (session == nullptr) { // fp32 is its only precision
    session = std::make_unique<Ort::Session>(open_session(env_, graph_path(bundle_, graph, "fp32"), options_, true));
  }
  return *session;
}

void Engine::decode(const std::int64_t* tokens, std::int64_t images, std::int64_t rows, std::int64_t columns,
                    Result& result) {
  const std::int64_t shape[] = {images, rows, columns};
  const char* const input = "tokens";
  const char* const output = "images";
  try {
    const Ort::Value given = Ort::Value::CreateTensor<std::int64_t>(
        host_, const_cast<std::int64_t*>(tokens), product({images, rows, columns}), shape, 3); // only read
    const std::vector<Ort::Value> found =
        tokenizer("decoder", decoder_).Run(Ort::RunOptions{nullptr}, &input, &given, 1, &output, 1);
    const Ort::TensorTypeAndShapeInfo facts = found.front().GetTensorTypeAndShapeInfo();
    const std::vector<std::int64_t> size = facts.GetShape();
    if (facts.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 || size.size() != 4 || size[0] != images ||
        size[3] != 3) {
      throw Error(Code::engine, text("the decoder of ", bundle_.root.string(), " gives no images: export it again"));
    }
    const auto* pixels = found.front().GetTensorData<std::uint8_t>();
    result.pixels.insert(result.pixels.end(), pixels, pixels + facts.GetElementCount());
    result.height = size[1];
    result.width = size[2];
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine, text("ONNX Runtime failed to decode images: ", error.what()));
  }
}

std::vector<std::int64_t> Engine::encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                         std::int64_t width) {
  const std::int64_t shape[] = {images, height, width, 3};
  const char* const input = "images";
  const char* const output = "tokens";
  try {
    const Ort::Value given = Ort::Value::CreateTensor<std::uint8_t>(
        host_, const_cast<std::uint8_t*>(pixels), product({images, height, width, 3}), shape, 4); // only read
    const std::vector<Ort::Value> found =
        tokenizer("encoder", encoder_).Run(Ort::RunOptions{nullptr}, &input, &given, 1, &output, 1);
    const Ort::TensorTypeAndShapeInfo facts = found.front().GetTensorTypeAndShapeInfo();
    if (facts.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
      throw Error(Code::engine, text("the encoder of ", bundle_.root.string(), " gives no tokens: export it again"));
    }
    const auto* tokens = found.front().GetTensorData<std::int64_t>();
    return {tokens, tokens + facts.GetElementCount()};
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine, text("ONNX Runtime failed to encode images: ", error.what()));
  }
}

} // namespace arforge
