#include "looped_decoding.h"

#include <algorithm>
#include <utility>

#include "at.h"

namespace arforge {

LoopedDecoding::LoopedDecoding(const Plan& plan, State start, const Drawing& drawing, std::unique_ptr<DraftLoop> loop)
    : JacobiDecoding(plan, std::move(start), drawing), loop_(std::move(loop)) {
  describe(loop_->inputs());
}

void LoopedDecoding::fill(StepBuffers& buffers) {
  if (!begun_) {
    JacobiDecoding::fill(buffers);
    loop_->begin(buffers);
    begun_ = true;
  }
}

void LoopedDecoding::run(Engine& engine, const Shape& shape, bool /*first*/) {
  loop_->run();
  std::vector<std::int64_t>& drawn = engine.buffers(shape).next_tokens;
  const auto outputs = static_cast<std::int64_t>(drawn.size()) / state_.images;
  for (std::int64_t image = 0; image < state_.images; image++) {
    at(at_, image) = loop_->place(image);
    at(passes_, image) = loop_->passes(image);
    at(drawn, image * outputs) = loop_->fault(image);
  }
  behind_ = *std::min_element(at_.begin(), at_.end());
}

void LoopedDecoding::store(const StepBuffers& /*buffers*/) {
  if (behind_ == line_.inputs()) {
    fetch();
  }
}

std::vector<bool> LoopedDecoding::decided() {
  fetch();
  for (std::int64_t image = 0; image < state_.images; image++) {
    for (std::int64_t cell = 0; cell < plan_.cells; cell++) {
      decided_[static_cast<std::size_t>(image * plan_.cells + cell)] = at(line_.deciders, cell) < at(at_, image);
    }
  }
  return decided_;
}

// The tokens so far, drafts among them.
void LoopedDecoding::fetch() {
  for (std::int64_t row = 0; row < state_.rows; row++) {
    std::copy_n(loop_->tokens(row % state_.images), plan_.cells, known(row));
  }
}

// What the calls of this batch differ in.
void LoopedDecoding::describe(LoopInputs& batch) const {
  const std::int64_t inputs = line_.inputs();
  for (std::int64_t input = 0; input < inputs; input++) {
    at(batch.line_tokens, input) = at(state_.known, at(line_.columns, input));
  }
  for (std::int64_t image = 0; image < state_.images; image++) {
    for (std::int64_t input = 0; input < inputs; input++) {
      at(batch.line_guidance, image * inputs + input) = drawing_.scale(image, at(line_.guidance, input));
    }
  }
  for (std::int64_t row = 0; row < state_.rows; row++) {
    at(batch.first_tokens, row) = at(state_.known, row * state_.columns + line_.columns.front());
  }
  std::copy(state_.places.begin(), state_.places.end(), batch.moved.begin());
  draw_cells(batch.cell_uniforms, batch.cell_noise);
  show_prompts(batch.seen);
}

} // namespace arforge
