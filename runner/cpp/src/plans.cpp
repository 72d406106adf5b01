#include "plans.h"

#include <algorithm>
#include <utility>

#include "schedules/visibility.h"
#include "text.h"

namespace arforge {
namespace {

constexpr std::size_t MOST_PLANS = 8; // for later requests

} // namespace

std::vector<const Plan*> Plans::of(const std::string& schedule, const Canvas& canvas, std::int64_t prompt_slots) {
  std::vector<const Plan*> found;
  found.reserve(canvas.windows.size());
  for (const Window& window : canvas.windows) {
    found.push_back(&of(schedule, window.kept, prompt_slots));
  }
  return found;
}

const Plan& Plans::of(const std::string& schedule, const std::vector<std::int32_t>& kept, std::int64_t prompt_slots) {
  const auto same = [&](const Named& named) {
    return named.schedule == schedule && named.kept == kept && named.prompt_slots == prompt_slots;
  };
  const auto found = std::find_if(plans_.begin(), plans_.end(), same);
  if (found != plans_.end()) {
    plans_.splice(plans_.begin(), plans_, found);
  } else {
    Schedule found_schedule = find_schedule(bundle_, schedule, kept);
    const EngineFacts& able = engine_.facts();
    if (able.own_mask && !sees_all_before(found_schedule)) {
      throw Error(Code::engine, text("the engine was built for next-token decoding, in which all that is before is "
                                     "seen: build it again with --schedule ",
                                     schedule));
    }
    plans_.push_front({schedule, kept, prompt_slots,
                       make_plan(std::move(found_schedule), able.widths, able.growth, prompt_slots, able.exact_width)});
  }
  return plans_.front().plan;
}

void Plans::trim() {
  while (plans_.size() > MOST_PLANS) {
    plans_.pop_back();
  }
}

} // namespace arforge
