// Fills the caches of a generation's rows with what stands before the images.
//
// The cache of a row holds zero slots, the prompt's slots, then the schedule's. Of a prompt all but the last row go
// into slots here, right-aligned; the last one is the condition token that the schedule feeds. Each distinct prompt
// passes the step graph once, in a row of its own, and is copied to the rows that have it, so a picture does not depend
// on the others of its batch.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <utility>
#include <vector>

#include "backends/engine.h"
#include "conditions.h"
#include "plan.h"

namespace arforge {

// Readies an engine for generations; one an engine.
class Prefill {
public:
  Prefill(Engine& engine, const ModelFacts& model) : engine_(engine), model_(model) {}

  // Prepares the engine for `plan`, a prompt a row. Throws Error (numerics) if a prompt makes non-finite logits, which
  // names its image, counted from `first_image`; Error (engine) for a prompt that the engine cannot take at once.
  void start(const Plan& plan, std::int64_t images, const std::vector<Prompt>& prompts, std::int64_t first_image);

  // Drops the caches of prompts that the next request is not likely to have.
  void release() noexcept { forget({}, false); }

private:
  struct Filled {
    Prompt prompt;
    bool low; // whether its caches are (Engine::has_low_caches)
    CacheContent caches;
  };
  using Held = std::list<Filled>;

  Held::iterator find(const Prompt& prompt, bool low);
  CacheContent pass(const Prompt& prompt, const std::string& name, std::int64_t lockstep);
  void write(const Plan& plan, std::int64_t row, const Prompt& prompt, bool low);
  void forget(const std::vector<Prompt>& present, bool low);

  Engine& engine_;
  const ModelFacts& model_;
  Held held_; // the latest used last
};

} // namespace arforge
