#include "request.h"

#include "randomness.h"
#include "text.h"

namespace arforge {
namespace {

constexpr std::int64_t MAX_BATCH = 1 << 30;
constexpr std::int64_t MAX_TOP_K = 1 << 30;
constexpr double MAX_SCALE = 1000; // of guidance and temperature

} // namespace

Sampling sampling_of(const Request& request, const Sampler& usual) {
  const Sampling s{request.guidance.value_or(usual.guidance),
                   request.greedy ? 0.0 : request.temperature.value_or(usual.temperature),
                   request.top_k.value_or(usual.top_k), request.top_p.value_or(usual.top_p)};
  if (!(s.guidance >= 1 && s.guidance <= MAX_SCALE)) {
    throw Error(Code::request, text("guidance ", s.guidance, " is out of range: use 1 (off) to ", MAX_SCALE));
  }
  if (!(s.temperature >= 0 && s.temperature <= MAX_SCALE)) {
    throw Error(Code::request, text("temperature ", s.temperature, " is out of range: use 0 (greedy) to ", MAX_SCALE));
  }
  if (s.top_k < 0 || s.top_k > MAX_TOP_K) {
    throw Error(Code::request, text("top-k ", s.top_k, " is out of range: use 0 to ", MAX_TOP_K));
  }
  if (!(s.top_p > 0 && s.top_p <= 1)) {
    throw Error(Code::request, text("top-p ", s.top_p, " is out of range: use a number in (0, 1]; 1 is off"));
  }
  return s;
}

void check_request(const Request& request, const Model& model) {
  if (request.classes.empty()) {
    throw Error(Code::request, "no classes given: name at least one");
  }
  for (const std::int64_t label : request.classes) {
    if (label < 0 || label >= model.classes) {
      throw Error(Code::request, text("class ", label, " is out of range: use 0 to ", model.classes - 1));
    }
  }
  if (!request.seeds.empty() && request.seeds.size() != request.classes.size()) {
    throw Error(Code::request,
                text(request.seeds.size(), " seeds for ", request.classes.size(), " classes: give one seed an image"));
  }
  if (request.batch < 1 || request.batch > MAX_BATCH) {
    throw Error(Code::request, text("batch ", request.batch, " is out of range: use 1 to ", MAX_BATCH));
  }
}

std::vector<float> uniforms_of(const Request& request, std::int64_t cells) {
  std::vector<float> numbers;
  numbers.reserve(request.classes.size() * static_cast<std::size_t>(cells));
  for (std::size_t image = 0; image < request.classes.size(); image++) {
    const std::uint64_t seed = request.seeds.empty() ? image : request.seeds[image];
    for (std::int64_t cell = 0; cell < cells; cell++) {
      numbers.push_back(uniform(seed, static_cast<std::uint64_t>(cell)));
    }
  }
  return numbers;
}

} // namespace arforge
