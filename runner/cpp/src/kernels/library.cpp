// The kernels as a library of their own, which ONNX Runtime loads in Python.

#include "kernels/instructions.h"
#include "kernels/operators.h"

#define ARFORGE_EXPORT extern "C" __attribute__((visibility("default")))

// Whether this processor can run them.
ARFORGE_EXPORT int arforge_kernels_supported() { return arforge::kernels::supported() ? 1 : 0; }

// Goes up when the operators do: a library of other ones must not be taken for this one.
ARFORGE_EXPORT int arforge_kernels_generation() { return 2; }

// Has all kernels use the instructions of a name; whether this processor has them.
ARFORGE_EXPORT int arforge_kernels_choose(const char* name) { return arforge::kernels::choose(name) ? 1 : 0; }

ARFORGE_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "the kernels were compiled with headers of a newer ONNX Runtime");
  }
  Ort::InitApi(api);
  try {
    arforge::kernels::add_operators(options);
    return nullptr;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
