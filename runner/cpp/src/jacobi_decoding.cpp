#include "jacobi_decoding.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "at.h"

namespace arforge {

JacobiDecoding::JacobiDecoding(const Plan& plan, State start, const Drawing& drawing)
    : Decoding(plan, std::move(start), drawing), line_(*plan.line), slot_(plan.steps.front().write_index),
      at_(static_cast<std::size_t>(state_.images)), decided_(at_.size() * static_cast<std::size_t>(plan.cells)),
      passes_(at_), drafted_(decided_), first_(static_cast<std::size_t>(plan.first_width)),
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

} // namespace arforge
