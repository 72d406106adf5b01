#include "decoding.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "adaptive_decoding.h"
#include "at.h"
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

// Each image is where its drafts have brought it; its rows have a write index, positions and masks of their own.
//
// A call feeds the inputs of the line from the first that is not yet in the cache: that one is right, the others are as
// right as the drafts of their cells. What it samples becomes the cells' tokens. Those that saw right inputs alone are
// decided, the others are drafts again. Inputs stay in the cache up to the first wrong one, the next call writes over
// the others: where a later input does not see that one, its cell is decided all the same, and fed again. A cell that
// enters the window begins with the token of the cell above, in row 0 with token 0.
class JacobiDecoding : public Decoding {
public:
  JacobiDecoding(const Plan& plan, State start, const Drawing& drawing);

  [[nodiscard]] std::optional<Shape> shape() const override {
    return behind_ == line_.inputs() ? std::nullopt : std::optional(next());
  }
  [[nodiscard]] std::int64_t done() const override { return at(line_.steps, behind_); }
  [[nodiscard]] std::int64_t passes(std::int64_t image) const override { return at(passes_, image); }
  [[nodiscard]] const std::vector<std::int64_t>& outputs() const override { return behind_ == 0 ? first_ : all_; }
  void fill(StepBuffers& buffers) override;
  void store(const StepBuffers& buffers) override;
  [[nodiscard]] std::vector<bool> decided() override { return decided_; }

private:
  [[nodiscard]] Shape next() const;
  // Done images, and what is left over of a window, repeat the last input.
  [[nodiscard]] std::int64_t place(std::int64_t input) const { return std::min(input, line_.inputs() - 1); }
  void draft(std::int64_t image, std::int64_t width);
  void fill_mask(std::int64_t row, const Shape& shape, StepBuffers& buffers) const;
  void judge(std::int64_t image, std::int64_t end, const StepBuffers& buffers);
  // A fact of an image's cell.
  [[nodiscard]] std::size_t of(std::int64_t image, std::int64_t cell) const {
    return static_cast<std::size_t>(image * plan_.cells + cell);
  }

  const Line& line_;
  std::int64_t slot_;                     // of the line's first input
  std::vector<std::int64_t> at_;          // (images) inputs in the cache that are right
  std::vector<bool> decided_, drafted_;   // (images, cells) the latter: decided, or with a draft
  std::vector<std::int64_t> passes_;      // (images)
  std::int64_t behind_ = 0;               // inputs that every image has in its cache
  std::vector<std::int64_t> first_, all_; // outputs of a call: of the first, and of the others
  std::vector<bool> missing_;             // (width) inputs of a window whose cells have no draft
  std::vector<bool> wrong_, misled_;      // (width) inputs of a window that were wrong, outputs that saw one
};

JacobiDecoding::JacobiDecoding(const Plan& plan, State start, const Drawing& drawing)
    : Decoding(plan, std::move(start), drawing), line_(*plan.line), slot_(plan.steps.front().write_index),
      at_(static_cast<std::size_t>(state_.images)), decided_(at_.size() * static_cast<std::size_t>(plan.cells)),
      drafted_(decided_), passes_(at_), first_(static_cast<std::size_t>(plan.first_width)),
      all_(static_cast<std::size_t>(plan.jacobi_width)), missing_(std::max(first_.size(), all_.size())),
      wrong_(missing_), misled_(missing_) {
  std::iota(first_.begin(), first_.end(), 0);
  std::iota(all_.begin(), all_.end(), 0);
}

Shape JacobiDecoding::next() const {
  // nothing can be drafted before the condition has been seen
  const std::int64_t width = behind_ == 0 ? plan_.first_width : plan_.jacobi_width;
  const std::int64_t furthest = place(*std::max_element(at_.begin(), at_.end()));
  return {width, 0, plan_.live(slot_ + furthest + width)};
}

void JacobiDecoding::fill(StepBuffers& buffers) {
  const Shape now = next();
  for (std::int64_t image = 0; image < state_.images; image++) {
    const std::int64_t first = place(at(at_, image));
    draft(image, now.width);
    for (std::int64_t output = 0; output < now.width; output++) {
      const std::int64_t input = place(first + output);
      at(buffers.guidance, image * now.width + output) = drawing_.scale(image, at(line_.guidance, input));
      drawing_.fill(buffers, image, output, std::max<std::int64_t>(at(line_.targets, input), 0));
    }
  }
  for (std::int64_t row = 0; row < state_.rows; row++) {
    const std::int64_t first = place(at(at_, row % state_.images));
    for (std::int64_t output = 0; output < now.width; output++) {
      const std::int64_t input = place(first + output);
      at(buffers.tokens, row * now.width + output) = known(row)[at(line_.columns, input)];
      at(buffers.positions, row * now.width + output) = at(state_.places, row) + at(line_.positions, input);
    }
    at(buffers.write_index, row) = slot_ + first;
    fill_mask(row, now, buffers);
  }
}

void JacobiDecoding::fill_mask(std::int64_t row, const Shape& shape, StepBuffers& buffers) const {
  std::uint8_t* const mask = buffers.mask.data() + row * shape.width * shape.slots;
  std::fill_n(mask, shape.width * shape.slots, std::uint8_t{0});
  for (std::int64_t output = 0; output < shape.width; output++) {
    const std::int64_t input = place(at(at_, row % state_.images) + output);
    std::uint8_t* const slots = mask + output * shape.slots;
    std::fill_n(slots, at(line_.holes, input), std::uint8_t{1});
    for (std::int64_t other = 0; other <= input; other++) {
      slots[slot_ + other] = line_.sees(input, other) ? 1 : 0;
    }
  }
  show_prompt(row, shape.width, shape.slots, mask);
}

void JacobiDecoding::store(const StepBuffers& buffers) {
  const auto width = static_cast<std::int64_t>(outputs().size());
  for (std::int64_t image = 0; image < state_.images; image++) {
    const std::int64_t first = at(at_, image);
    const std::int64_t end = std::min(first + width, line_.inputs());
    judge(image, end, buffers);
    at(passes_, image) += first < end ? 1 : 0;
    while (at(at_, image) < end && !wrong_[static_cast<std::size_t>(at(at_, image) - first)]) {
      at(at_, image)++;
    }
    for (std::int64_t input = first; input < end; input++) {
      const std::int64_t cell = at(line_.targets, input);
      if (cell < 0 || decided_[of(image, cell)]) {
        continue;
      }
      for (std::int64_t row = image; row < state_.rows; row += state_.images) {
        known(row)[cell] = at(buffers.next_tokens, image * width + input - first);
      }
      drafted_[of(image, cell)] = true;
      decided_[of(image, cell)] = !misled_[static_cast<std::size_t>(input - first)];
    }
  }
  behind_ = *std::min_element(at_.begin(), at_.end());
}

// Which inputs of an image's window, up to `end` of the line, were wrong, and which outputs saw one that was. An input
// is wrong if it was fed a draft that did not come out again, or that came out of an output so misled.
void JacobiDecoding::judge(std::int64_t image, std::int64_t end, const StepBuffers& buffers) {
  const auto width = static_cast<std::int64_t>(outputs().size());
  const std::int64_t first = at(at_, image);
  for (std::int64_t input = first; input < end; input++) {
    const std::int64_t source = at(line_.sources, input);
    bool wrong = false;
    if (source >= 0 && !decided_[of(image, source)]) { // decided within the window, before this input
      const std::int64_t output = at(line_.deciders, source) - first;
      wrong = misled_[static_cast<std::size_t>(output)] ||
              at(buffers.next_tokens, image * width + output) != at(buffers.tokens, image * width + input - first);
    }
    wrong_[static_cast<std::size_t>(input - first)] = wrong;
    bool misled = wrong;
    for (std::int64_t other = first; other < input && !misled; other++) {
      misled = wrong_[static_cast<std::size_t>(other - first)] && line_.sees(input, other);
    }
    misled_[static_cast<std::size_t>(input - first)] = misled;
  }
}

// First drafts of the cells of an image's window that have none.
void JacobiDecoding::draft(std::int64_t image, std::int64_t width) {
  for (std::int64_t output = 0; output < width; output++) {
    const std::int64_t cell = at(line_.sources, place(at(at_, image) + output));
    missing_[static_cast<std::size_t>(output)] = cell >= 0 && !drafted_[of(image, cell)];
  }
  for (std::int64_t output = 0; output < width; output++) {
    if (!missing_[static_cast<std::size_t>(output)]) {
      continue;
    }
    const std::int64_t cell = at(line_.sources, place(at(at_, image) + output));
    for (std::int64_t row = image; row < state_.rows; row += state_.images) {
      known(row)[cell] = cell >= plan_.across ? known(row)[cell - plan_.across] : 0;
    }
    drafted_[of(image, cell)] = true;
  }
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

std::unique_ptr<Decoding> decoding_of(const Plan& plan, State start, const Drawing& drawing,
                                      std::unique_ptr<TableLoop> loop) {
  if (loop != nullptr) {
    return std::make_unique<TabledDecoding>(plan, std::move(start), drawing, std::move(loop));
  }
  if (plan.rules) {
    return std::make_unique<AdaptiveDecoding>(plan, *plan.rules, std::move(start), drawing);
  }
  if (plan.line) {
    return std::make_unique<JacobiDecoding>(plan, std::move(start), drawing);
  }
  return std::make_unique<TableDecoding>(plan, std::move(start), drawing);
}

} // namespace arforge
