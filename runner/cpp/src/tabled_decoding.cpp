#include "tabled_decoding.h"

#include <algorithm>
#include <utility>

#include "at.h"

namespace arforge {

TabledDecoding::TabledDecoding(const Plan& plan, State start, const Drawing& drawing, std::unique_ptr<TableLoop> loop)
    : Decoding(plan, std::move(start), drawing), loop_(std::move(loop)) {
  describe(loop_->inputs());
}

std::optional<Shape> TabledDecoding::shape() const {
  return done_ == calls() ? std::nullopt : std::optional(at(plan_.steps, done_).shape);
}

void TabledDecoding::fill(StepBuffers& buffers) {
  if (done_ == 0) {
    loop_->begin(buffers);
  }
}

void TabledDecoding::run(Engine& engine, const Shape& shape, bool /*first*/) {
  reached_ = loop_->run();
  std::int64_t earliest = calls();
  for (std::int64_t image = 0; image < state_.images; image++) {
    earliest = loop_->fault(image) != 0 ? std::min(earliest, loop_->fault_call(image)) : earliest;
  }
  done_ = earliest < calls() ? earliest : done_; // the step that the error names
  std::vector<std::int64_t>& drawn = engine.buffers(shape).next_tokens;
  const auto outputs = static_cast<std::int64_t>(drawn.size()) / state_.images;
  for (std::int64_t image = 0; image < state_.images; image++) {
    at(drawn, image * outputs) = loop_->fault_call(image) == earliest ? loop_->fault(image) : 0;
  }
}

void TabledDecoding::store(const StepBuffers& /*buffers*/) {
  done_ = reached_;
  if (done_ == calls()) {
    fetch();
  }
}

std::vector<bool> TabledDecoding::decided() {
  fetch();
  return plan_.decided(done_, state_.images);
}

// The tokens so far.
void TabledDecoding::fetch() {
  for (std::int64_t row = 0; row < state_.rows; row++) {
    std::copy_n(loop_->known(row), plan_.cells, known(row));
  }
}

// What the calls of this batch differ in.
void TabledDecoding::describe(TableInputs& batch) const {
  std::copy(state_.known.begin(), state_.known.end(), batch.known.begin());
  std::copy(state_.places.begin(), state_.places.end(), batch.moved.begin());
  for (std::int64_t image = 0; image < state_.images; image++) {
    for (std::int64_t call = 0; call < calls(); call++) {
      at(batch.call_guidance, image * calls() + call) = drawing_.scale(image, at(plan_.steps, call).guidance);
    }
  }
  draw_cells(batch.cell_uniforms, batch.cell_noise);
  show_prompts(batch.seen);
}

} // namespace arforge
