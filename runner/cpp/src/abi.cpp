// The C interface, over the C++ one. No exception leaves it.
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>

#include "arforge.hpp"
#include "text.h"

struct arforge_runner {
  arforge::Runner runner;
};

struct arforge_result {
  arforge::Result result;
};

namespace {

using arforge::Code;
using arforge::Error;

thread_local std::array<char, 4096> last_error{};

arforge_status failed(arforge_status status, const char* message) noexcept {
  std::strncpy(last_error.data(), message, last_error.size() - 1);
  return status;
}

// Runs `work`; whatever it throws becomes a status and this thread's last error.
template <class Work>
arforge_status guarded(Work work) noexcept {
  try {
    work();
    return ARFORGE_OK;
  } catch (const Error& error) {
    return failed(static_cast<arforge_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return failed(ARFORGE_ERROR_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(ARFORGE_ERROR_INTERNAL, error.what());
  } catch (...) {
    return failed(ARFORGE_ERROR_INTERNAL, "unknown exception");
  }
}

template <class T>
T& given(T* pointer, const char* name) {
  if (pointer == nullptr) {
    throw Error(Code::argument, arforge::text(name, " is NULL"));
  }
  return *pointer;
}

// A struct of this library's size; one of another is from another version.
template <class T>
T& sized(T* pointer, const char* name) {
  T& found = given(pointer, name);
  if (found.size != sizeof(T)) {
    throw Error(Code::argument, arforge::text(name, " has size ", found.size, ", this library's has ", sizeof(T),
                                              ": initialise it, and compile against this version's arforge.h"));
  }
  return found;
}

// One value an image, else one for all, else (nothing, of which `none` tells) the bundle's.
template <class T>
arforge::Setting<T> setting(const T* each, std::size_t images, T one, bool none) {
  if (each != nullptr) {
    return std::vector<T>(each, each + images);
  }
  return none ? arforge::Setting<T>() : arforge::Setting<T>(one);
}

arforge::Setting<double> setting(const double* each, std::size_t images, double one) {
  return setting(each, images, one, std::isnan(one));
}

arforge::Options options_of(const arforge_options* c) {
  arforge::Options options;
  if (c != nullptr) {
    (void)sized(c, "options");
    options.precision = c->precision != nullptr ? c->precision : options.precision;
    options.provider = c->provider != nullptr ? c->provider : options.provider;
    options.plugin = c->plugin != nullptr ? c->plugin : options.plugin;
    options.threads = c->threads;
    options.check_hashes = c->check_hashes != 0;
  }
  return options;
}

constexpr std::size_t MOST = 1 << 20; // tokens of a prompt, and numbers of each, so that no size overflows

// The features of each prompt, which follow one another.
std::vector<arforge::Features> features_of(const arforge_request& c) {
  std::vector<arforge::Features> features;
  const float* values = c.features;
  for (std::size_t image = 0; image < c.images; image++) {
    const std::size_t length = (&given(c.lengths, "lengths"))[image];
    if (length > MOST || c.width > MOST) {
      throw Error(Code::request, arforge::text("the features: prompt ", image, " has ", length, " rows of ", c.width,
                                               " numbers, which is out of range"));
    }
    features.push_back({values, static_cast<std::int64_t>(length), static_cast<std::int64_t>(c.width)});
    values += length * c.width;
  }
  return features;
}

// The ids of each prompt, which follow one another; `name`: of their lengths.
std::vector<arforge::Ids> ids_of(const std::int64_t* values, const std::size_t* lengths, std::size_t prompts,
                                 const char* name) {
  std::vector<arforge::Ids> ids;
  for (std::size_t prompt = 0; prompt < prompts; prompt++) {
    const std::size_t length = (&given(lengths, name))[prompt];
    if (length > MOST) {
      throw Error(Code::request,
                  arforge::text("the ids: prompt ", prompt, " has ", length, " tokens, which is out of range"));
    }
    ids.push_back({values, static_cast<std::int64_t>(length)});
    values += length;
  }
  return ids;
}

arforge::Request request_of(const arforge_request& c) {
  arforge::Request request;
  if (c.features != nullptr) {
    request.features = features_of(c);
  }
  if (c.ids != nullptr) {
    request.ids = ids_of(c.ids, c.lengths, c.images, "lengths");
  }
  if (c.negative_ids != nullptr || c.negatives > 0) {
    request.negative_ids =
        ids_of(&given(c.negative_ids, "negative_ids"), c.negative_lengths, c.negatives, "negative_lengths");
    if (c.negatives == 0) {
      throw Error(Code::request,
                  arforge::text("0 negative prompts for ", c.images, " images: give one for all, or one an image"));
    }
  }
  request.unconditional = c.unconditional != nullptr ? c.unconditional : "";
  request.prefill = c.prefill != nullptr ? c.prefill : "";
  if (c.images > 0 && ((c.features == nullptr && c.ids == nullptr) || c.classes != nullptr)) {
    request.classes.assign(&given(c.classes, "classes"), c.classes + c.images);
  }
  if (c.seeds != nullptr) {
    request.seeds.assign(c.seeds, c.seeds + c.images);
  }
  request.schedule = c.schedule != nullptr ? c.schedule : "";
  request.guidance = setting(c.guidances, c.images, c.guidance);
  request.temperature = setting(c.temperatures, c.images, c.temperature);
  request.top_p = setting(c.top_ps, c.images, c.top_p);
  request.top_k = setting(c.top_ks, c.images, c.top_k, c.top_k == -1);
  request.greedy = c.greedy != 0;
  request.batch = c.batch;
  if (c.known != nullptr) {
    const std::size_t most = 1 << 16; // cells of a grid, and images of a request with known tokens
    if (c.known_images > most || c.known_rows > most || c.known_columns > most ||
        c.known_rows * c.known_columns > most) {
      throw Error(Code::request, arforge::text("known tokens of ", c.known_images, " images of ", c.known_rows, "x",
                                               c.known_columns, " are out of range"));
    }
    request.known.assign(c.known, c.known + c.known_images * c.known_rows * c.known_columns);
    request.known_rows = static_cast<std::int64_t>(c.known_rows);
    request.known_columns = static_cast<std::int64_t>(c.known_columns);
  }
  if (c.progress != nullptr) {
    request.progress = [call = c.progress, user = c.user](std::int64_t done, std::int64_t steps) {
      return call(user, done, steps) == 0;
    };
  }
  return request;
}

template <class T>
void store(T* place, T value) {
  if (place != nullptr) {
    *place = value;
  }
}

} // namespace

int32_t arforge_abi_version(void) { return ARFORGE_ABI_VERSION; }

const char* arforge_last_error(void) { return last_error.data(); }

void arforge_options_init(arforge_options* options) {
  if (options != nullptr) {
    *options = {};
    options->size = sizeof *options;
  }
}

void arforge_request_init(arforge_request* request) {
  if (request != nullptr) {
    *request = {};
    request->size = sizeof *request;
    request->guidance = request->temperature = request->top_p = std::numeric_limits<double>::quiet_NaN();
    request->top_k = -1;
    request->batch = arforge::Request().batch;
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
    *result = new arforge_result{opened.generate(request_of(sized(request, "request")))};
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
