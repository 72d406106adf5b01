// The C interface, over the C++ one. No exception leaves it.
#include <array>
#include <cstring>
#include <numeric>

#include "abi.h"

namespace {

using arforge::Code;
using arforge::Error;

constexpr std::int64_t LEFT_OUT = -1;

thread_local std::array<char, 4096> last_error{};

arforge::Options options_of(const arforge_options* c) {
  arforge::Options options;
  if (c != nullptr) {
    (void)sized(c, "options");
    options.target = c->target != nullptr ? c->target : options.target;
    options.precision = c->precision != nullptr ? c->precision : options.precision;
    options.provider = c->provider != nullptr ? c->provider : options.provider;
    options.plugin = c->plugin != nullptr ? c->plugin : options.plugin;
    options.threads = c->threads;
    options.check_hashes = c->check_hashes != 0;
    if (c->look_every != LEFT_OUT) {
      options.look_every = c->look_every;
    }
  }
  return options;
}

} // namespace

int32_t arforge_abi_version(void) { return ARFORGE_ABI_VERSION; }

arforge_status arforge_failed(arforge_status status, const char* message) noexcept {
  std::strncpy(last_error.data(), message, last_error.size() - 1);
  return status;
}

const char* arforge_last_error(void) { return last_error.data(); }

void arforge_options_init(arforge_options* options) {
  if (options != nullptr) {
    *options = {};
    options->size = sizeof *options;
    options->look_every = LEFT_OUT;
  }
}

arforge_status arforge_open(const char* bundle, const arforge_options* options, arforge_runner** runner) {
  return guarded([&] {
    given(runner, "runner") = nullptr;
    const auto path = std::filesystem::u8path(&given(bundle, "bundle"));
    *runner = new arforge_runner{arforge::Runner::open(path, options_of(options))};
  });
}

void arforge_close(arforge_runner* runner) { delete runner; }

arforge_status arforge_runner_facts(const arforge_runner* runner, arforge_facts* facts) {
  return guarded([&] {
    const arforge::Facts& found = given(runner, "runner").runner.facts();
    arforge_facts& result = sized(facts, "facts");
    result = {sizeof result,      found.classes,       found.rows,          found.columns,  found.vocabulary,
              found.downsampling, found.feature_slots, found.feature_width, found.id_slots, found.id_vocabulary};
  });
}

arforge_status arforge_generate(arforge_runner* runner, const arforge_request* request, arforge_result** result) {
  return guarded([&] {
    given(result, "result") = nullptr;
    arforge::Runner& opened = given(runner, "runner").runner;
    *result = new arforge_result{opened.generate(arforge_request_of(sized(request, "request")))};
  });
}

void arforge_result_free(arforge_result* result) { delete result; }

const int64_t* arforge_result_tokens(const arforge_result* result, size_t* images, size_t* rows, size_t* columns) {
  if (result == nullptr) {
    return nullptr;
  }
  store(images, static_cast<size_t>(result->result.images));
  store(rows, static_cast<size_t>(result->result.rows));
  store(columns, static_cast<size_t>(result->result.columns));
  return result->result.tokens.data();
}

const uint8_t* arforge_result_pixels(const arforge_result* result, size_t* height, size_t* width) {
  if (result == nullptr) {
    return nullptr;
  }
  store(height, static_cast<size_t>(result->result.height));
  store(width, static_cast<size_t>(result->result.width));
  return result->result.pixels.empty() ? nullptr : result->result.pixels.data();
}

int64_t arforge_result_steps(const arforge_result* result) { return result == nullptr ? 0 : result->result.steps; }

const int64_t* arforge_result_passes(const arforge_result* result, size_t* images) {
  if (result == nullptr) {
    return nullptr;
  }
  store(images, result->result.passes.size());
  return result->result.passes.data();
}

void arforge_result_seconds(const arforge_result* result, double* decoding, double* engine, double* images) {
  const arforge::Result none;
  const arforge::Result& found = result == nullptr ? none : result->result;
  store(decoding, found.seconds);
  store(engine, std::accumulate(found.engine_seconds.begin(), found.engine_seconds.end(), 0.0));
  store(images, found.image_seconds);
}

double arforge_result_condition_seconds(const arforge_result* result) {
  return result == nullptr ? 0 : result->result.condition_seconds;
}

arforge_status arforge_encode(arforge_runner* runner, const uint8_t* pixels, size_t images, size_t height, size_t width,
                              int64_t* tokens, size_t capacity) {
  return guarded([&] {
    const size_t most = 1 << 30;
    if (images > most || height > most || width > most) {
      throw Error(Code::request, arforge::text(images, " images of ", height, "x", width, " are out of range"));
    }
    arforge::Runner& opened = given(runner, "runner").runner;
    const auto found = opened.encode(&given(pixels, "pixels"), static_cast<std::int64_t>(images),
                                     static_cast<std::int64_t>(height), static_cast<std::int64_t>(width));
    if (found.size() > capacity) {
      throw Error(Code::argument, arforge::text(found.size(), " tokens do not fit a capacity of ", capacity));
    }
    std::copy(found.begin(), found.end(), &given(tokens, "tokens"));
  });
}
