// Counts heap allocations of the thread that generates, from the end of the first step to the end of the last, but for
// those inside ONNX Runtime's own Run: this program stands in for the library's entry point, and puts a function of
// its own in place of RunWithBinding.
//
//   allocations BUNDLE SCHEDULE [provoke]               "provoke": allocate once a step, which must be seen
//   allocations BUNDLE SCHEDULE quiet TARGET PRECISION  of another engine, of whose library the stand-in's do not count
//
// Of four generations the third is cancelled after its first step, and not told of.
#include <arforge.hpp>

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include "subjects.h"

extern "C" {
int stand_in_inside() __attribute__((weak)); // of tensorrt_stand_in/stand_in.h, where arforge links that
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* place, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
}

namespace {

thread_local bool counting = false;
thread_local bool inside = false; // ONNX Runtime
std::int64_t allocations = 0;
std::int64_t runs = 0;

void count_one() {
  if (counting && !inside && (stand_in_inside == nullptr || stand_in_inside() == 0)) {
    allocations++;
  }
}

OrtApi table;
const OrtApi* real_table = nullptr;

OrtStatusPtr ORT_API_CALL run_with_binding(OrtSession* session, const OrtRunOptions* options,
                                           const OrtIoBinding* binding) noexcept {
  inside = true;
  runs++;
  OrtStatusPtr status = real_table->RunWithBinding(session, options, binding);
  inside = false;
  return status;
}

const OrtApiBase* real_base() {
  static const auto found = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(RTLD_NEXT, "OrtGetApiBase"));
  return found();
}

const OrtApi* ORT_API_CALL get_api(uint32_t version) noexcept {
  real_table = real_base()->GetApi(version);
  if (real_table == nullptr) {
    return nullptr;
  }
  table = *real_table;
  table.RunWithBinding = run_with_binding;
  return &table;
}

const char* ORT_API_CALL get_version() noexcept { return real_base()->GetVersionString(); }

} // namespace

extern "C" {

// Also behind operator new, whose library calls malloc.
void* malloc(size_t size) {
  count_one();
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  count_one();
  return __libc_calloc(count, size);
}
void* realloc(void* place, size_t size) {
  count_one();
  return __libc_realloc(place, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  count_one();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** place, size_t alignment, size_t size) {
  count_one();
  *place = __libc_memalign(alignment, size);
  return *place == nullptr ? 12 : 0;
}

const OrtApiBase* ORT_API_CALL OrtGetApiBase(void) noexcept {
  static const OrtApiBase base = {get_api, get_version};
  return &base;
}
}

int main(int count, char** words) {
  const bool provoke = count == 4;
  arforge::Options options;
  options.target = count == 6 ? words[4] : options.target;
  options.precision = count == 6 ? words[5] : "";
  options.threads = 1;
  arforge::Runner runner = arforge::Runner::open(words[1], options);
  arforge::Request request = request_for(runner.facts(), 3, 1);
  request.schedule = words[2];
  bool cancelled = false;
  request.progress = [&](std::int64_t done, std::int64_t steps) {
    if (provoke) {
      delete new volatile int(1);
    }
    counting = done < steps && !cancelled;
    return !cancelled;
  };
  for (int generation = 0; generation < 4; generation++) {
    runs = 0;
    allocations = 0;
    cancelled = generation == 2;
    std::int64_t steps = 0;
    try {
      steps = runner.generate(request).steps;
    } catch (const arforge::Error& error) {
      if (!cancelled || error.code() != arforge::Code::cancelled) {
        throw;
      }
      continue;
    }
    counting = false;
    std::printf("%lld steps, %lld runs, %lld allocations\n", static_cast<long long>(steps),
                static_cast<long long>(runs), static_cast<long long>(allocations));
  }
}
