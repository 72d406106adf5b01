// What all operators are made of: a kernel whose errors become ONNX Runtime's.
#pragma once

#include <exception>
#include <memory>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

namespace arforge::kernels {

// The status of what was done; an exception becomes one.
template <typename Work>
OrtStatusPtr guarded(Work work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return Ort::Status(error.what(), ORT_FAIL).release();
  }
}

// A kernel that is made from an `OrtKernelInfo*` and has `compute(const Ort::KernelContext&)`.
template <typename Kernel>
class Guarded {
public:
  explicit Guarded(const OrtKernelInfo* info) : kernel_(info) {}
  OrtStatusPtr ComputeV2(OrtKernelContext* raw) noexcept {
    return guarded([&] { kernel_.compute(Ort::KernelContext(raw)); });
  }

private:
  Kernel kernel_;
};

template <typename Operator, typename Kernel>
class OperatorBase : public Ort::CustomOpBase<Operator, Guarded<Kernel>, true> {
public:
  OrtStatusPtr CreateKernelV2(const OrtApi& /*api*/, const OrtKernelInfo* info, void** kernel) const noexcept {
    return guarded([&] { *kernel = std::make_unique<Guarded<Kernel>>(info).release(); });
  }

private:
  OperatorBase() = default;
  friend Operator;
};

} // namespace arforge::kernels
