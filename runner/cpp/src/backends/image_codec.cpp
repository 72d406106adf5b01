#include "backends/image_codec.h"

#include "step_graph.h"
#include "text.h"

namespace arforge {
namespace {

// One output of a session with one input, which is only read.
template <class T>
Ort::Value converted(Ort::Session& session, const Tensor& input, const Tensor& output, const T* given,
                     const std::vector<std::int64_t>& shape) {
  const Ort::MemoryInfo host = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  const Ort::Value tensor =
      Ort::Value::CreateTensor<T>(host, const_cast<T*>(given), entries_of(shape), shape.data(), shape.size());
  const char* from = input.name.c_str();
  const char* into = output.name.c_str();
  try {
    return std::move(session.Run(Ort::RunOptions{nullptr}, &from, &tensor, 1, &into, 1).front());
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine,
                text("ONNX Runtime failed to make ", output.name, " of ", input.name, ": ", error.what()));
  }
}

} // namespace

OnnxRuntimeCodec::OnnxRuntimeCodec(const Bundle& bundle, const Options& options)
    : bundle_(bundle), options_(options), env_(open_environment()) {}

Ort::Session& OnnxRuntimeCodec::session(const std::string& graph, std::unique_ptr<Ort::Session>& session) {
  if (session == nullptr) { // fp32 is its only precision
    session = std::make_unique<Ort::Session>(open_session(env_, graph_path(bundle_, graph, "fp32"), options_, true));
    check_session(*session, contract_of(bundle_.model, graph, Type::float32),
                  text("the ", graph, " of ", bundle_.root.string()));
  }
  return *session;
}

void OnnxRuntimeCodec::decode(const std::int64_t* tokens, std::int64_t images, std::int64_t rows, std::int64_t columns,
                              const Receive& receive) {
  const Contract contract = contract_of(bundle_.model, "decoder", Type::float32);
  const Ort::Value found = converted(session("decoder", decoder_), contract.inputs.front(), contract.outputs.front(),
                                     tokens, {images, rows, columns});
  const std::vector<std::int64_t> size = found.GetTensorTypeAndShapeInfo().GetShape();
  if (size.size() != 4 || size[0] != images || size[3] != 3) {
    throw Error(Code::engine, text("the decoder of ", bundle_.root.string(), " gives no images: export it again"));
  }
  receive(found.GetTensorData<std::uint8_t>(), images, size[1], size[2]);
}

std::vector<std::int64_t> OnnxRuntimeCodec::encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                                   std::int64_t width) {
  const Contract contract = contract_of(bundle_.model, "encoder", Type::float32);
  const Ort::Value found = converted(session("encoder", encoder_), contract.inputs.front(), contract.outputs.front(),
                                     pixels, {images, height, width, 3});
  const auto* tokens = found.GetTensorData<std::int64_t>();
  return {tokens, tokens + found.GetTensorTypeAndShapeInfo().GetElementCount()};
}

} // namespace arforge
