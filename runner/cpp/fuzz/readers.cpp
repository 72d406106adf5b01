// Fuzz target over what reads untrusted bytes: manifests, identities of TensorRT engines, schedule files, schedule
// specifications, arrays. Whatever comes in, each is read, or refused with arforge::Error; a schedule that is read can
// be planned and its calls filled.
//
//   cmake -S runner/cpp -B build/fuzz -DARFORGE_FUZZ=ON -DARFORGE_SANITIZE=ON -DCMAKE_CXX_COMPILER=clang++ ...
//   build/fuzz/fuzz/fuzz-readers CORPUS -max_total_time=3600 -dict=runner/cpp/fuzz/readers.dict
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>

#include "../tools/npy_reader.h"
#include "arforge.hpp"
#include "bundle/bundle.h"
#include "bundle/tensorrt_identity.h"
#include "conditions.h"
#include "decoding.h"
#include "schedules/file.h"
#include "schedules/specification.h"

namespace {

using arforge::Plan;

constexpr std::int64_t GROWTH = 8;          // slots
constexpr std::int64_t PROMPT_SLOTS = 3;    // of plans for any width
constexpr std::int64_t MAX_MASKS = 1 << 22; // bytes of all masks that one input may ask for
constexpr std::int64_t IMAGES = 2;          // of two rows each
constexpr std::int64_t TOKENS = 3;          // of the vocabulary, so that some drafts come true

arforge::StepBuffers buffers_of(const arforge::Shape& shape) {
  const std::int64_t outputs = std::max(shape.width, shape.queries); // as many as either kind of model has
  const auto size = [](std::int64_t entries) { return static_cast<std::size_t>(entries); };
  arforge::StepBuffers buffers;
  buffers.tokens.resize(size(2 * IMAGES * shape.width));
  buffers.positions = buffers.tokens;
  buffers.write_index.resize(size(2 * IMAGES));
  buffers.mask.resize(size(2 * IMAGES * shape.width * shape.slots));
  buffers.query_positions.resize(size(2 * IMAGES * shape.queries));
  buffers.uniforms.resize(size(IMAGES * outputs));
  buffers.guidance = buffers.uniforms;
  buffers.temperature.resize(size(IMAGES));
  buffers.next_tokens.resize(size(IMAGES * outputs));
  return buffers;
}

// All calls of a batch whose tokens are drawn from a hat.
void follow(const Plan& plan) {
  std::vector<std::int64_t> cells(static_cast<std::size_t>(plan.cells));
  std::iota(cells.begin(), cells.end(), 0);
  const std::vector<std::uint64_t> seeds(static_cast<std::size_t>(IMAGES));
  const std::vector<double> guidance(static_cast<std::size_t>(IMAGES), 2);
  std::vector<arforge::Prompt> prompts(static_cast<std::size_t>(2 * IMAGES));
  prompts.front().length = 1 + plan.prompt_slots;
  arforge::ModelFacts model{};
  model.specials.resize(static_cast<std::size_t>(plan.specials));
  const std::vector<std::int64_t> known(static_cast<std::size_t>(IMAGES * plan.cells));
  const auto decoding =
      arforge::decoding_of(plan, arforge::start_of(plan, model, IMAGES, prompts, known), {seeds, cells, guidance, 0});
  std::uint32_t hat = 1;
  while (const std::optional<arforge::Shape> shape = decoding->shape()) {
    if (std::find(plan.shapes.begin(), plan.shapes.end(), *shape) == plan.shapes.end()) {
      std::abort(); // an engine is prepared for those alone
    }
    arforge::StepBuffers buffers = buffers_of(*shape);
    decoding->fill(buffers);
    for (std::int64_t& token : buffers.next_tokens) {
      hat = hat * 1664525 + 1013904223;
      token = (hat >> 16) % TOKENS;
    }
    decoding->store(buffers);
  }
}

void plan_and_follow(const arforge::Schedule& schedule, const std::vector<std::int64_t>& widths) {
  const Plan plan =
      arforge::make_plan(schedule, widths, widths.empty() ? 0 : GROWTH, widths.empty() ? PROMPT_SLOTS : 0);
  std::int64_t bytes = 0;
  for (const arforge::PlannedStep& step : plan.steps) {
    bytes += (plan.line ? plan.jacobi_width : step.shape.width) * plan.slots;
  }
  if (bytes <= MAX_MASKS && plan.specials <= MAX_MASKS) {
    follow(plan);
  }
}

// For a grid whose rows end in the special token `row_end`, or in none.
void compile(const arforge::Specification& specification, std::optional<std::int64_t> row_end) {
  try {
    plan_and_follow(arforge::compile_schedule(specification, 8, 12, {}, row_end), {});
    plan_and_follow(arforge::compile_schedule(specification, 8, 12, {}, row_end), {1, 2});
  } catch (const arforge::Error&) {
    return; // refused
  }
}

void read(const std::string& content) {
  if (content.rfind("ARFSCHED", 0) == 0) {
    const arforge::Schedule schedule = arforge::load_schedule(content, "input");
    plan_and_follow(schedule, {});
    plan_and_follow(schedule, {1, 4});
  } else if (content.rfind('{', 0) == 0 && content.find("\"compute_capabilities\"") != std::string::npos) {
    (void)arforge::parse_tensorrt_identity(content, "input");
  } else if (content.rfind('{', 0) == 0) {
    (void)arforge::parse_manifest(content, "input");
  } else if (content.rfind('\x93', 0) == 0) {
    std::istringstream in(content);
    const Array array = read_array(in, "input");
    for (std::size_t index = 0; index < array.size() && !array.content.empty(); index++) {
      (void)array.number(index);
      if (array.kind->is_whole()) {
        (void)array.whole(index);
      }
    }
    (void)described(array);
  } else {
    const arforge::Specification specification = arforge::parse_specification(content);
    compile(specification, {});
    compile(specification, 0);
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    read({reinterpret_cast<const char*>(data), size});
  } catch (const arforge::Error&) {
    return 0; // refused
  }
  return 0;
}
