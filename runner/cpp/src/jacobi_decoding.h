// Next-token decoding, or another line of inputs, that runs ahead on drafts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "at.h"
#include "decoding.h"

namespace arforge {

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

protected:
  [[nodiscard]] Shape next() const;

  const Line& line_;
  std::int64_t slot_;                // of the line's first input
  std::vector<std::int64_t> at_;     // (images) inputs in the cache that are right
  std::vector<bool> decided_;        // (images, cells)
  std::vector<std::int64_t> passes_; // (images)
  std::int64_t behind_ = 0;          // inputs that every image has in its cache

private:
  // Done images, and what is left over of a window, repeat the last input.
  [[nodiscard]] std::int64_t place(std::int64_t input) const { return std::min(input, line_.inputs() - 1); }
  void draft(std::int64_t image, std::int64_t width);
  void fill_mask(std::int64_t row, const Shape& shape, StepBuffers& buffers) const;
  void judge(std::int64_t image, std::int64_t end, const StepBuffers& buffers);
  // A fact of an image's cell.
  [[nodiscard]] std::size_t of(std::int64_t image, std::int64_t cell) const {
    return static_cast<std::size_t>(image * plan_.cells + cell);
  }

  std::vector<bool> drafted_;             // (images, cells) that are decided, or have a draft
  std::vector<std::int64_t> first_, all_; // outputs of a call: of the first, and of the others
  std::vector<bool> missing_;             // (width) inputs of a window whose cells have no draft
  std::vector<bool> wrong_, misled_;      // (width) inputs of a window that were wrong, outputs that saw one
};

} // namespace arforge
