// The plans of a runner: each is made once and kept for later requests.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <vector>

#include "backends/engine.h"
#include "bundle/bundle.h"
#include "canvas.h"
#include "plan.h"

namespace arforge {

class Plans {
public:
  Plans(const Bundle& bundle, const Engine& engine) : bundle_(bundle), engine_(engine) {}

  // The plans of a schedule for the windows of a canvas, good until `trim`. Throws Error (schedule, engine).
  std::vector<const Plan*> of(const std::string& schedule, const Canvas& canvas, std::int64_t prompt_slots);
  // Drops those that were used longest ago.
  void trim();

private:
  struct Named {
    std::string schedule;
    std::vector<std::int32_t> kept;
    std::int64_t prompt_slots;
    Plan plan;
  };

  const Plan& of(const std::string& schedule, const std::vector<std::int32_t>& kept, std::int64_t prompt_slots);

  const Bundle& bundle_;
  const Engine& engine_;
  std::list<Named> plans_; // the latest used first
};

} // namespace arforge
