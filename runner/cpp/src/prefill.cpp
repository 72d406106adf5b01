#include "prefill.h"

#include <algorithm>
#include <utility>

#include "numerics.h"
#include "text.h"

namespace arforge {
namespace {

constexpr std::int64_t CHUNK = 128; // tokens of a prompt that pass at once, where the engine takes any number
constexpr std::size_t KEPT = 8;     // prompts whose caches stay for later requests

bool is_among(const std::vector<Prompt>& prompts, const Prompt& prompt) {
  return std::find(prompts.begin(), prompts.end(), prompt) != prompts.end();
}

// How a prompt passes the step graph in pieces.
struct Chunks {
  std::vector<std::int64_t> firsts;
  std::vector<Shape> shapes;
};

// `widths`: of passes that the engine was built for; none: any. `name`: for messages.
Chunks chunks_of(const Prompt& prompt, std::int64_t position_rows, const std::vector<std::int64_t>& widths,
                 const std::string& name) {
  const std::int64_t count = prompt.before();
  const std::int64_t most = widths.empty() ? std::max(std::min(CHUNK, position_rows), prompt.together)
                                           : *std::max_element(widths.begin(), widths.end());
  if (prompt.together > most) {
    throw Error(Code::engine, text(name, " has ", prompt.together, " tokens that see each other, the engine takes ",
                                   most, " at once: build it again with --prefill-width ", prompt.together,
                                   ", or ask for a causal prefill"));
  }
  Chunks chunks;
  for (std::int64_t first = 0; first < count; first += most) {
    chunks.firsts.push_back(first);
    chunks.shapes.push_back({engine_width(std::min(most, count - first), widths), 0, 0});
  }
  const std::int64_t slots = chunks.firsts.back() + chunks.shapes.back().width;
  for (Shape& shape : chunks.shapes) {
    shape.slots = slots;
  }
  return chunks;
}

// Writes the inputs of a chunk of `prompt` that begins at `first`; padding repeats the last.
void fill_chunk(const Prompt& prompt, std::int64_t first, bool in_sequence, const Shape& shape, StepBuffers& buffers) {
  for (std::int64_t input = 0; input < shape.width; input++) {
    const std::int64_t place = std::min(first + input, prompt.before() - 1);
    buffers.tokens[static_cast<std::size_t>(input)] = prompt.token + place;
    buffers.positions[static_cast<std::size_t>(input)] = in_sequence ? place : 0;
    const std::int64_t seen = std::max(place + 1, place < prompt.together ? prompt.together : 0);
    std::uint8_t* const mask = buffers.mask.data() + input * shape.slots;
    std::fill_n(mask, seen, std::uint8_t{1});
    std::fill_n(mask + seen, shape.slots - seen, std::uint8_t{0});
  }
  std::fill(buffers.write_index.begin(), buffers.write_index.end(), first);
  std::copy_n(prompt.rows->begin(), buffers.condition.size(), buffers.condition.begin());  // all rows but the last
  for (auto* const settings : {&buffers.guidance, &buffers.temperature, &buffers.top_p}) { // no guidance, no filters
    std::fill(settings->begin(), settings->end(), 1.0F);
  }
  std::fill(buffers.top_k.begin(), buffers.top_k.end(), 0);
}

} // namespace

Prefill::Held::iterator Prefill::find(const Prompt& prompt, bool low) {
  return std::find_if(held_.begin(), held_.end(),
                      [&](const Filled& held) { return held.low == low && held.prompt == prompt; });
}

void Prefill::start(const Plan& plan, std::int64_t images, const std::vector<Prompt>& prompts,
                    std::int64_t first_image) {
  std::vector<Prompt> distinct;
  for (const Prompt& prompt : prompts) {
    if (prompt.before() > 0 && !is_among(distinct, prompt)) {
      distinct.push_back(prompt);
    }
  }
  const std::int64_t lockstep = plan.lockstep_width();
  const bool low = engine_.has_low_caches(lockstep);
  for (const Prompt& prompt : distinct) {
    if (const auto held = find(prompt, low); held != held_.end()) {
      held_.splice(held_.end(), held_, held);
    } else {
      const std::int64_t row = std::find(prompts.begin(), prompts.end(), prompt) - prompts.begin();
      const char* const whose = row < images ? "the prompt" : "what stands for no prompt";
      CacheContent caches = pass(prompt, text(whose, " of image ", first_image + row % images), lockstep);
      held_.push_back({prompt, low, std::move(caches)});
    }
  }
  const auto rows = static_cast<std::int64_t>(prompts.size());
  engine_.prepare({images, rows, plan.slots, 1, lockstep}, plan.shapes, plan.zero_slots + plan.prompt_slots);
  if (!conditioned(model_)) {
    return;
  }
  for (std::int64_t row = 0; row < rows; row++) {
    write(plan, row, prompts[static_cast<std::size_t>(row)], low);
  }
  forget(distinct, low);
}

// Puts a prompt where one row of the steps finds it.
void Prefill::write(const Plan& plan, std::int64_t row, const Prompt& prompt, bool low) {
  for (const Shape& shape : plan.shapes) {
    std::copy(prompt.rows->end() - model_.dim, prompt.rows->end(),
              engine_.buffers(shape).condition.begin() + row * model_.dim);
  }
  if (prompt.before() > 0) {
    engine_.write_cache(row, plan.zero_slots + plan.prompt_slots - prompt.before(), find(prompt, low)->caches);
  }
}

// Drops the caches of prompts that are neither in this batch nor likely to come again.
void Prefill::forget(const std::vector<Prompt>& present, bool low) {
  std::size_t kept = 0;
  for (auto held = held_.end(); held != held_.begin();) { // the latest first
    --held;
    const bool here = held->low == low && is_among(present, held->prompt);
    if (!here && (!held->prompt.keep || ++kept > KEPT)) {
      held = held_.erase(held);
    }
  }
}

// The caches of one prompt, called `name` in messages, which goes through the step graph in chunks. The head and the
// sampler run too and are dropped: they cost little of these passes, while a graph without them would be a second copy
// of the weights. `lockstep`: of the steps that it is for, as extents have it.
CacheContent Prefill::pass(const Prompt& prompt, const std::string& name, std::int64_t lockstep) {
  const std::int64_t count = prompt.before();
  const Chunks chunks = chunks_of(prompt, model_.position_rows, engine_.facts().prefill_widths, name);
  const std::int64_t slots = chunks.shapes.front().slots;
  engine_.prepare({1, 1, slots, count, lockstep}, chunks.shapes, slots);
  for (std::size_t chunk = 0; chunk < chunks.shapes.size(); chunk++) {
    const Shape& shape = chunks.shapes[chunk];
    StepBuffers& buffers = engine_.buffers(shape);
    fill_chunk(prompt, chunks.firsts[chunk], model_.positions == "sequence", shape, buffers);
    engine_.run(shape, chunk == 0);
    const auto& drawn = buffers.next_tokens;
    if (std::find(drawn.begin(), drawn.end(), NO_TOKEN) != drawn.end()) {
      engine_.clear();
      throw Error(Code::numerics, text(name, ": the logits are non-finite in its first ",
                                       std::min(chunks.firsts[chunk] + shape.width, count), " tokens of ", count + 1,
                                       "; check its features, ", advice(engine_)));
    }
  }
  return engine_.read_cache(0, 0, count);
}

} // namespace arforge
