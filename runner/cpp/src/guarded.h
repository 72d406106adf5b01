// What libraries throw, as errors of this one.
#pragma once

#include <filesystem>
#include <new>
#include <stdexcept>

#include "backends/onnxruntime_session.h"
#include "text.h"

namespace arforge {

// Runs `work`, with what libraries throw as Error; what the caller's own functions throw passes through.
template <class Work>
auto guarded(Work work) {
  try {
    return work();
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine, text("ONNX Runtime failed: ", error.what()));
  } catch (const std::bad_alloc&) {
    throw Error(Code::memory, "no memory for this request: use a smaller batch");
  } catch (const std::length_error&) {
    throw Error(Code::memory, "no memory for this request: use a smaller batch");
  } catch (const std::filesystem::filesystem_error& error) {
    throw Error(Code::missing_file, error.what());
  }
}

} // namespace arforge
