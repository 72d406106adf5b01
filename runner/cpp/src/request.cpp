#include "request.h"

#include <algorithm>
#include <numeric>

#include "text.h"

namespace arforge {
namespace {

constexpr std::int64_t MAX_BATCH = 1 << 30;
constexpr std::int64_t MAX_TOP_K = 1 << 30;
constexpr double MAX_SCALE = 1000; // of guidance and temperature

// One value an image, of those that a request gives or the one that is usual.
template <class T>
std::vector<T> spread(const char* name, const Setting<T>& given, T usual, std::size_t images) {
  if (given.values.size() > 1 && given.values.size() != images) {
    throw Error(Code::request, text(given.values.size(), " values of ", name, " for ", images,
                                    " images: give one for all, or one an image"));
  }
  if (given.values.size() == images) {
    return given.values;
  }
  return std::vector<T>(images, given.values.empty() ? usual : given.values.front());
}

// Throws Error (request) for the first value that does not fit.
template <class T, class Fits>
void check_each(const std::vector<T>& values, const char* name, Fits fits, const std::string& use) {
  for (const T value : values) {
    if (!fits(value)) {
      throw Error(Code::request, text(name, " ", value, " is out of range: use ", use));
    }
  }
}

} // namespace

std::int64_t images_of(const Request& request) {
  return static_cast<std::int64_t>(std::max({request.classes.size(), request.features.size(), request.ids.size()}));
}

Sampling sampling_of(const Request& request, const SamplerDefaults& usual) {
  const auto images = static_cast<std::size_t>(images_of(request));
  Sampling s{spread("guidance", request.guidance, usual.guidance, images),
             spread("temperature", request.temperature, usual.temperature, images),
             spread("top-k", request.top_k, usual.top_k, images), spread("top-p", request.top_p, usual.top_p, images)};
  if (request.greedy) {
    s.temperature.assign(images, 0.0);
  }
  check_each(s.guidance, "guidance", [](double g) { return g >= 1 && g <= MAX_SCALE; }, text("1 (off) to ", MAX_SCALE));
  check_each(
      s.temperature, "temperature", [](double t) { return t >= 0 && t <= MAX_SCALE; },
      text("0 (greedy) to ", MAX_SCALE));
  check_each(s.top_k, "top-k", [](std::int64_t k) { return k >= 0 && k <= MAX_TOP_K; }, text("0 to ", MAX_TOP_K));
  check_each(s.top_p, "top-p", [](double p) { return p > 0 && p <= 1; }, "a number in (0, 1]; 1 is off");
  return s;
}

void check_classes(const std::vector<std::int64_t>& classes, const ModelFacts& model) {
  const std::int64_t most = class_condition(model).classes - 1;
  for (const std::int64_t label : classes) {
    if (label < 0 || label > most) {
      throw Error(Code::request, text("class ", label, " is out of range: use 0 to ", most));
    }
  }
}

void check_ids(const std::vector<Ids>& ids, std::int64_t slots, const char* where) {
  for (std::size_t index = 0; index < ids.size(); index++) {
    const Ids& one = ids[index];
    const std::string name = text(where, ": prompt ", index);
    if (one.length < 1 || one.length > slots) {
      throw Error(Code::request, text(name, " has ", one.length, " tokens, the model has room for 1 to ", slots,
                                      ": leave out padding with a mask, or shorten the prompt"));
    }
    if (one.values == nullptr) {
      throw Error(Code::request, text(name, " is NULL: expected whole numbers, int64 [tokens]"));
    }
    const std::int64_t least = *std::min_element(one.values, one.values + one.length);
    if (least < 0) {
      throw Error(Code::request,
                  text(name, " holds ", least, ": ids are 0 or more, as the text encoder's own tokenizer gives them"));
    }
  }
}

void check_request(const Request& request) {
  const auto seeds = static_cast<std::int64_t>(request.seeds.size());
  if (seeds != 0 && seeds != images_of(request)) {
    throw Error(Code::request, text(seeds, " seeds for ", images_of(request), " images: give one seed an image"));
  }
  if (request.batch < 1 || request.batch > MAX_BATCH) {
    throw Error(Code::request, text("batch ", request.batch, " is out of range: use 1 to ", MAX_BATCH));
  }
}

void check_images(const std::optional<ImageTokenizerFacts>& tokenizer, std::int64_t images, std::int64_t height,
                  std::int64_t width) {
  if (!tokenizer) {
    throw Error(Code::request, "the bundle has no image tokenizer: export it with --tokenizer FILE");
  }
  const std::int64_t side = tokenizer->downsampling;
  if (images < 1 || height < side || width < side || height % side != 0 || width % side != 0) {
    throw Error(Code::request,
                text(images, " images of ", height, "x", width, " are not a whole number of ", side, "-pixel tokens"));
  }
}

bool Sampling::guided(std::int64_t first, std::int64_t images) const {
  const auto begin = guidance.begin() + first;
  return std::any_of(begin, begin + images, [](double scale) { return scale != 1; });
}

void fill_settings(const Sampling& sampling, std::int64_t first, std::int64_t images, StepBuffers& buffers) {
  for (std::int64_t image = 0; image < images; image++) {
    const auto given = static_cast<std::size_t>(first + image);
    const auto place = static_cast<std::size_t>(image);
    buffers.temperature[place] = static_cast<float>(sampling.temperature[given]);
    buffers.top_k[place] = sampling.top_k[given];
    buffers.top_p[place] = static_cast<float>(sampling.top_p[given]);
  }
}

void reserve_calls(Result& result, std::size_t calls) {
  result.step_seconds.reserve(calls);
  result.engine_seconds.reserve(calls);
  result.step_widths.reserve(calls);
  result.step_queries.reserve(calls);
}

void note_call(Result& result, const Shape& shape) {
  result.step_widths.push_back(shape.width);
  result.step_queries.push_back(shape.queries);
}

std::vector<std::uint64_t> seeds_of(const Request& request) {
  std::vector<std::uint64_t> seeds = request.seeds;
  if (seeds.empty()) {
    seeds.resize(static_cast<std::size_t>(images_of(request)));
    std::iota(seeds.begin(), seeds.end(), 0);
  }
  return seeds;
}

} // namespace arforge
