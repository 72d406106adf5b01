// Requests of the C interface as those of the C++ one.
#include <cmath>
#include <limits>

#include "abi.h"

namespace {

using arforge::Code;
using arforge::Error;

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

} // namespace

arforge::Request arforge_request_of(const arforge_request& c) {
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
  if (c.preview != nullptr) {
    request.preview = [call = c.preview, user = c.user](const arforge::Partial& partial) {
      arforge_partial seen{partial, {}, {}};
      call(user, &seen);
    };
  }
  if (c.progress != nullptr) {
    request.progress = [call = c.progress, user = c.user](std::int64_t done, std::int64_t steps) {
      return call(user, done, steps) == 0;
    };
  }
  return request;
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
