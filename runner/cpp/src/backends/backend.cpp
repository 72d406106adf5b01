#include "backends/backend.h"

#include "backends/onnxruntime_engine.h"
#include "text.h"

#ifdef ARFORGE_TENSORRT
#include "backends/tensorrt_codec.h"
#include "backends/tensorrt_engine.h"
#endif

namespace arforge {
namespace {

constexpr std::int64_t MOST_CALLS = 1 << 30; // between two looks

void check_look_every(const Options& options) {
  if (options.look_every && options.target == "onnxruntime") {
    throw Error(Code::request, text("look-every is for TensorRT: with ", options.target,
                                    " the host makes each call, so leave it out"));
  }
  if (const std::int64_t calls = options.look_every.value_or(0); calls < 0 || calls > MOST_CALLS) {
    throw Error(Code::request, text("look-every is ", calls, ", expected a whole number of 0 to ", MOST_CALLS));
  }
}

#ifdef ARFORGE_TENSORRT
Backend open_tensorrt(const Bundle& bundle, const Options& options) {
  auto engine = TensorRTEngine::built(bundle, options);
  auto codec = std::make_unique<TensorRTCodec>(bundle, *engine, options);
  return {std::move(engine), std::move(codec)};
}
#else
Backend open_tensorrt(const Bundle& /*bundle*/, const Options& options) {
  throw Error(Code::engine, text("this arforge was built without ", options.target,
                                 ": build it with -DARFORGE_TENSORRT=ON -DTENSORRT_ROOT=FOLDER, where FOLDER has its "
                                 "include/ and lib/, or use target onnxruntime"));
}
#endif

} // namespace

Backend open_backend(const Bundle& bundle, const Options& options) {
  check_look_every(options);
  if (options.target != "onnxruntime") {
    return open_tensorrt(bundle, options);
  }
  return {std::make_unique<OnnxRuntimeEngine>(bundle, find_engine(bundle, options.precision), options),
          std::make_unique<OnnxRuntimeCodec>(bundle, options)};
}

} // namespace arforge
