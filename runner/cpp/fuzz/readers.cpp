// Fuzz target over what reads untrusted bytes: manifests, schedule files, schedule specifications, arrays. Whatever
// comes in, each is read, or refused with arforge::Error; a schedule that is read can be planned and its masks made.
//
//   cmake -S runner/cpp -B build/fuzz -DARFORGE_FUZZ=ON -DARFORGE_SANITIZE=ON -DCMAKE_CXX_COMPILER=clang++ ...
//   build/fuzz/fuzz/fuzz-readers CORPUS -max_total_time=3600 -dict=runner/cpp/fuzz/readers.dict
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>

#include "../tools/npy_reader.h"
#include "arforge.hpp"
#include "bundle/bundle.h"
#include "plan.h"
#include "schedules/file.h"
#include "schedules/specification.h"
#include "schedules/visibility.h"

namespace {

using arforge::Plan;

constexpr std::int64_t GROWTH = 8;          // slots
constexpr std::int64_t PROMPT_SLOTS = 3;    // of plans for any width
constexpr std::int64_t MAX_MASKS = 1 << 22; // bytes of all masks that one input may ask for

void plan_and_mask(const arforge::Schedule& schedule, const std::vector<std::int64_t>& widths) {
  const Plan plan =
      arforge::make_plan(schedule, widths, widths.empty() ? 0 : GROWTH, widths.empty() ? PROMPT_SLOTS : 0);
  std::int64_t bytes = 0;
  for (const arforge::PlannedStep& step : plan.steps) {
    bytes += step.shape.width * step.shape.slots;
  }
  if (bytes > MAX_MASKS) {
    return;
  }
  arforge::Visibility visibility;
  visibility.start(plan.slots);
  for (const arforge::PlannedStep& step : plan.steps) {
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(step.shape.width * step.shape.slots));
    visibility.enter(step, step.shape.slots, plan.zero_slots, mask.data());
  }
}

// For a grid whose rows end in the special token `row_end`, or in none.
void compile(const arforge::Specification& specification, std::optional<std::int64_t> row_end) {
  try {
    plan_and_mask(arforge::compile_schedule(specification, 8, 12, {}, row_end), {});
    plan_and_mask(arforge::compile_schedule(specification, 8, 12, {}, row_end), {1, 2});
  } catch (const arforge::Error&) {
    return; // refused
  }
}

void read(const std::string& content) {
  if (content.rfind("ARFSCHED", 0) == 0) {
    const arforge::Schedule schedule = arforge::load_schedule(content, "input");
    plan_and_mask(schedule, {});
    plan_and_mask(schedule, {1, 4});
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
