#include "adaptive_decoding.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "at.h"

namespace arforge {
namespace {

// One with room for any call of a plan.
PlannedStep roomy(const Plan& plan) {
  const std::int64_t widest = std::max_element(plan.shapes.begin(), plan.shapes.end())->width;
  const auto inputs = static_cast<std::size_t>(std::max(widest, 2 * plan.down));
  PlannedStep planned{};
  for (auto* const list : {&planned.columns, &planned.positions, &planned.target_rows, &planned.target_cells}) {
    list->reserve(inputs);
  }
  for (auto* const list : {&planned.ranks, &planned.holes, &planned.retire}) {
    list->reserve(inputs);
  }
  return planned;
}

} // namespace

RowImage::RowImage(const Plan& plan, const RowRules& rules)
    : rows(rows_of(plan.down, plan.across, rules, plan.steps.front().write_index)), step(roomy_step(plan.down)) {
  visibility.start(plan.slots);
  advance();
}

void RowImage::advance() {
  complete = rows->complete();
  if (!complete) {
    write_index = rows->slot();
    rows->next(step);
  }
}

AdaptiveDecoding::AdaptiveDecoding(const Plan& plan, const RowRules& rules, State start, const Drawing& drawing)
    : Decoding(plan, std::move(start), drawing), decided_(static_cast<std::size_t>(state_.images * plan.cells)),
      planned_(roomy(plan)) {
  for (std::int64_t image = 0; image < state_.images; image++) {
    images_.emplace_back(plan, rules);
  }
  outputs_.reserve(planned_.columns.capacity());
}

std::optional<Shape> AdaptiveDecoding::shape() const {
  const auto over = [](const RowImage& image) { return image.complete; };
  return std::all_of(images_.begin(), images_.end(), over) ? std::nullopt : std::optional(next());
}

Shape AdaptiveDecoding::next() const {
  std::size_t widest = 0;
  std::int64_t furthest = 0;
  for (const RowImage& image : images_) {
    widest = std::max(widest, image.step.inputs.size());
    furthest = std::max(furthest, image.write_index);
  }
  const std::int64_t width = engine_width(static_cast<std::int64_t>(widest), plan_.widths);
  return {width, 0, std::max(reached_, plan_.live(furthest + width))};
}

std::int64_t AdaptiveDecoding::done() const {
  const auto behind = [](const RowImage& a, const RowImage& b) { return a.decided < b.decided; };
  return std::min_element(images_.begin(), images_.end(), behind)->decided;
}

std::int64_t AdaptiveDecoding::passes(std::int64_t image) const { return at(images_, image).passes; }

void AdaptiveDecoding::fill(StepBuffers& buffers) {
  const Shape now = next();
  reached_ = now.slots;
  outputs_.resize(static_cast<std::size_t>(now.width));
  std::iota(outputs_.begin(), outputs_.end(), 0);
  const std::int64_t one = now.width * now.slots;
  std::uint8_t* const mask = buffers.mask.data();
  for (std::int64_t image = 0; image < state_.images; image++) {
    RowImage& own = at(images_, image);
    plan_step(own.step, plan_, false, now.width, planned_);
    planned_.write_index = own.write_index;
    own.visibility.enter(planned_, now.slots, plan_.zero_slots, mask + image * one);
    for (std::int64_t row = image; row < state_.rows; row += state_.images) {
      feed(planned_, row, buffers);
      if (row != image) {
        std::copy_n(mask + image * one, one, mask + row * one);
      }
    }
    for (std::int64_t row = image; row < state_.rows; row += state_.images) {
      show_prompt(row, now.width, now.slots, mask + row * one);
    }
    draw_with(planned_, image, buffers);
  }
}

void AdaptiveDecoding::store(const StepBuffers& buffers) {
  const auto width = static_cast<std::int64_t>(outputs_.size());
  for (std::int64_t image = 0; image < state_.images; image++) {
    if (!at(images_, image).complete) {
      take(image, buffers.next_tokens.data() + image * width);
    }
  }
}

// What an image's step has decided, from the tokens of its outputs.
void AdaptiveDecoding::take(std::int64_t image, const std::int64_t* drawn) {
  RowImage& own = at(images_, image);
  std::vector<Target>& decided = own.step.targets;
  const std::int64_t token = drawn[decided.back().row];
  if (own.rows->trial() < 0 || token == own.draft) {
    own.draft.reset();
  } else { // the next step writes over its slot
    own.draft = token;
    own.rows->withdraw();
    decided.pop_back();
  }
  for (std::int64_t row = image; row < state_.rows; row += state_.images) {
    for (const auto& [output, cell] : decided) {
      known(row)[cell] = drawn[output];
    }
  }
  for (const auto& [output, cell] : decided) {
    decided_[static_cast<std::size_t>(image * plan_.cells + cell)] = true;
  }
  own.passes++;
  own.decided += static_cast<std::int64_t>(decided.size());
  own.advance();
}

} // namespace arforge
