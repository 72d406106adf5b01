#include <algorithm>
#include <limits>

#include "plan.h"

namespace arforge {
namespace {

using Rank = std::int32_t;

// Whether nothing of the first `cut` inputs is seen by, or changes with, the others.
bool divides(const Step& step, std::int64_t cut, bool asked) {
  Rank highest = 0;
  Rank lowest = std::numeric_limits<Rank>::max();
  for (std::size_t index = 0; index < step.inputs.size(); index++) {
    const Rank rank = step.inputs[index].rank;
    if (static_cast<std::int64_t>(index) < cut) {
      highest = std::max(highest, rank);
    } else {
      lowest = std::min(lowest, rank);
    }
  }
  const bool silent = asked || std::all_of(step.targets.begin(), step.targets.end(),
                                           [&](const Target& target) { return target.row >= cut; });
  return highest < lowest && silent && step.commit >= cut;
}

// Where to cut a step of more than `widest` inputs; 0: nowhere.
std::int64_t place_to_cut(const Step& step, std::int64_t widest, bool asked) {
  for (std::int64_t cut = widest; cut > 0; cut--) {
    if (divides(step, cut, asked)) {
      return cut;
    }
  }
  return 0;
}

// Takes the first `cut` inputs off a step, as a step of their own.
Step taken(Step& step, std::int64_t cut, bool asked) {
  Step part{{step.inputs.begin(), step.inputs.begin() + cut},
            {},
            static_cast<std::int32_t>(cut),
            std::move(step.retire),
            step.guidance};
  step.inputs.erase(step.inputs.begin(), step.inputs.begin() + cut);
  step.retire.clear();
  step.commit -= part.commit;
  for (Target& target : step.targets) {
    target.row -= asked ? 0 : part.commit;
  }
  return part;
}

} // namespace

Schedule narrowed(Schedule schedule, std::int64_t widest) {
  std::vector<Step> steps;
  for (Step& step : schedule.steps) {
    while (static_cast<std::int64_t>(step.inputs.size()) > widest) {
      const std::int64_t cut = place_to_cut(step, widest, schedule.queries);
      if (cut == 0) {
        break;
      }
      steps.push_back(taken(step, cut, schedule.queries));
    }
    steps.push_back(std::move(step));
  }
  schedule.steps = std::move(steps);
  return schedule;
}

} // namespace arforge
