#include "decoding.h"

#include <algorithm>
#include <utility>

#include "adaptive_decoding.h"
#include "at.h"
#include "jacobi_decoding.h"
#include "looped_decoding.h"
#include "randomness.h"
#include "schedules/visibility.h"
#include "tabled_decoding.h"

namespace arforge {
namespace {

// All images are at the same step.
class TableDecoding : public Decoding {
public:
  TableDecoding(const Plan& plan, State start, const Drawing& drawing) : Decoding(plan, std::move(start), drawing) {
    visibility_.start(plan.slots);
  }

  [[nodiscard]] std::optional<Shape> shape() const override {
    return done_ == static_cast<std::int64_t>(plan_.steps.size()) ? std::nullopt : std::optional(step().shape);
  }
  [[nodiscard]] std::int64_t done() const override { return done_; }
  [[nodiscard]] std::int64_t passes(std::int64_t /*image*/) const override { return done_; }
  [[nodiscard]] const std::vector<std::int64_t>& outputs() const override { return step().target_rows; }
  void fill(StepBuffers& buffers) override;
  void store(const StepBuffers& buffers) override;
  [[nodiscard]] std::vector<bool> decided() override { return plan_.decided(done_, state_.images); }

private:
  [[nodiscard]] const PlannedStep& step() const { return at(plan_.steps, done_); }
  void fill_masks(StepBuffers& buffers);

  std::int64_t done_ = 0;
  Visibility visibility_;
};

void TableDecoding::fill(StepBuffers& buffers) {
  const PlannedStep& now = step();
  for (std::int64_t row = 0; row < state_.rows; row++) {
    feed(now, row, buffers);
    std::copy(now.query_positions.begin(), now.query_positions.end(),
              buffers.query_positions.data() + row * now.shape.queries);
  }
  fill_masks(buffers);
  for (std::int64_t image = 0; image < state_.images; image++) {
    draw_with(now, image, buffers);
  }
}

// All rows have one, but for what they see of prompts.
void TableDecoding::fill_masks(StepBuffers& buffers) {
  const Shape& shape = step().shape;
  std::uint8_t* const mask = buffers.mask.data();
  const std::int64_t one = shape.width * shape.slots;
  visibility_.enter(step(), shape.slots, plan_.zero_slots, mask);
  for (std::int64_t row = 1; row < state_.rows; row++) {
    std::copy_n(mask, one, mask + row * one);
  }
  for (std::int64_t row = 0; row < state_.rows; row++) {
    show_prompt(row, shape.width, shape.slots, mask + row * one);
  }
}

void TableDecoding::store(const StepBuffers& buffers) {
  const PlannedStep& now = step();
  const auto outputs = static_cast<std::int64_t>(buffers.next_tokens.size()) / state_.images;
  for (std::int64_t row = 0; row < state_.rows; row++) {
    const std::int64_t* drawn = buffers.next_tokens.data() + row % state_.images * outputs;
    for (std::size_t target = 0; target < now.target_cells.size(); target++) {
      known(row)[now.target_cells[target]] = drawn[now.target_rows[target]];
    }
  }
  done_++;
}

} // namespace

void Drawing::fill(StepBuffers& buffers, std::int64_t image, std::int64_t output, std::int64_t cell) const {
  const auto outputs = static_cast<std::int64_t>(buffers.next_tokens.size() / buffers.temperature.size());
  fill_random(buffers, image * outputs + output, at(seeds, first + image), at(cells, cell));
}

float Drawing::scale(std::int64_t image, double weight) const {
  return static_cast<float>(1 + (at(guidance, first + image) - 1) * weight);
}

Decoding::Decoding(const Plan& plan, State start, const Drawing& drawing)
    : plan_(plan), state_(std::move(start)), drawing_(drawing) {}

void Decoding::feed(const PlannedStep& step, std::int64_t row, StepBuffers& buffers) {
  const std::int64_t width = step.shape.width;
  for (std::int64_t input = 0; input < width; input++) {
    at(buffers.tokens, row * width + input) = known(row)[at(step.columns, input)];
    at(buffers.positions, row * width + input) = at(state_.places, row) + at(step.positions, input);
  }
  at(buffers.write_index, row) = step.write_index;
}

void Decoding::draw_with(const PlannedStep& step, std::int64_t image, StepBuffers& buffers) const {
  const std::int64_t outputs = static_cast<std::int64_t>(buffers.guidance.size()) / state_.images;
  std::fill_n(buffers.guidance.begin() + image * outputs, outputs, drawing_.scale(image, step.guidance));
  for (std::size_t target = 0; target < step.target_cells.size(); target++) {
    drawing_.fill(buffers, image, step.target_rows[target], step.target_cells[target]);
  }
}

void Decoding::show_prompt(std::int64_t row, std::int64_t width, std::int64_t slots, std::uint8_t* mask) const {
  const std::int64_t before = at(state_.before, row);
  for (std::int64_t input = 0; input < width && plan_.prompt_slots > 0; input++) {
    std::uint8_t* const prompt = mask + input * slots + plan_.zero_slots;
    std::fill_n(prompt, plan_.prompt_slots - before, std::uint8_t{0});
    std::fill_n(prompt + plan_.prompt_slots - before, before, std::uint8_t{1});
  }
}

void Decoding::draw_cells(std::vector<float>& uniforms, std::vector<float>& noises) const {
  const std::int64_t tokens = static_cast<std::int64_t>(noises.size()) / (state_.images * plan_.cells);
  for (std::int64_t image = 0; image < state_.images; image++) {
    const std::uint64_t seed = at(drawing_.seeds, drawing_.first + image);
    for (std::int64_t cell = 0; cell < plan_.cells; cell++) {
      const auto own = static_cast<std::uint64_t>(at(drawing_.cells, cell));
      const std::int64_t place = image * plan_.cells + cell;
      if (noises.empty()) {
        at(uniforms, place) = uniform(seed, own);
      } else {
        noise(seed, own, noises.data() + place * tokens, tokens);
      }
    }
  }
}

void Decoding::show_prompts(std::vector<std::uint8_t>& seen) const {
  for (std::int64_t row = 0; row < state_.rows && !seen.empty(); row++) {
    const std::int64_t end = row * plan_.slots + plan_.zero_slots + plan_.prompt_slots;
    std::fill_n(seen.begin() + end - at(state_.before, row), at(state_.before, row), std::uint8_t{1});
  }
}

std::unique_ptr<Decoding> decoding_of(const Plan& plan, State start, const Drawing& drawing, Engine* engine) {
  if (plan.rules) {
    return std::make_unique<AdaptiveDecoding>(plan, *plan.rules, std::move(start), drawing);
  }
  if (plan.line) {
    std::unique_ptr<DraftLoop> loop = engine != nullptr ? engine->draft_loop(plan) : nullptr;
    if (loop != nullptr) {
      return std::make_unique<LoopedDecoding>(plan, std::move(start), drawing, std::move(loop));
    }
    return std::make_unique<JacobiDecoding>(plan, std::move(start), drawing);
  }
  std::unique_ptr<TableLoop> loop = engine != nullptr ? engine->table_loop(plan) : nullptr;
  if (loop != nullptr) {
    return std::make_unique<TabledDecoding>(plan, std::move(start), drawing, std::move(loop));
  }
  return std::make_unique<TableDecoding>(plan, std::move(start), drawing);
}

} // namespace arforge
