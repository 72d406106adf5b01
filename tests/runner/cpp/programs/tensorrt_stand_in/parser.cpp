// An ONNX parser that is not there: it tells a refitter where the weights are.
#include <NvOnnxParser.h>

#include "refitter.h"

namespace {

class ParserRefitter : public nvonnxparser::IParserRefitter {
public:
  explicit ParserRefitter(Refitter& refitter) : refitter_(refitter) {}
  bool refitFromFile(const char* file) noexcept override { return refitter_.take(file); }

private:
  Refitter& refitter_;
};

} // namespace

void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* /*logger*/, std::int32_t version) noexcept {
  return version == NV_ONNX_PARSER_VERSION
             ? new ParserRefitter(*static_cast<Refitter*>(static_cast<nvinfer1::IRefitter*>(refitter)))
             : nullptr;
}
