// Images whose rows start as their own tokens allow.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "decoding.h"
#include "schedules/rows.h"

namespace arforge {

// One image: the step that it takes next, and the draft of its row on trial.
struct RowImage {
  RowImage(const Plan& plan, const RowRules& rules);

  // Goes to the next step, unless that was the last.
  void advance();

  std::unique_ptr<Rows> rows;
  Visibility visibility;
  Step step;
  std::int64_t write_index = 0, passes = 0, decided = 0;
  std::optional<std::int64_t> draft;
  bool complete = false;
};

// Each image is decoded row by row. Those of a batch are at steps of their own, with as many inputs as the widest of
// them; done ones repeat their last.
class AdaptiveDecoding : public Decoding {
public:
  AdaptiveDecoding(const Plan& plan, const RowRules& rules, State start, const Drawing& drawing);

  [[nodiscard]] std::optional<Shape> shape() const override;
  [[nodiscard]] std::int64_t done() const override;
  [[nodiscard]] std::int64_t passes(std::int64_t image) const override;
  [[nodiscard]] const std::vector<std::int64_t>& outputs() const override { return outputs_; }
  void fill(StepBuffers& buffers) override;
  void store(const StepBuffers& buffers) override;
  [[nodiscard]] std::vector<bool> decided() override { return decided_; }

private:
  [[nodiscard]] Shape next() const;
  void take(std::int64_t image, const std::int64_t* drawn);

  std::vector<RowImage> images_;
  std::vector<bool> decided_;         // (images, cells)
  std::int64_t reached_ = 0;          // slots that calls have been given: never fewer than before
  PlannedStep planned_;               // of the image that is filled
  std::vector<std::int64_t> outputs_; // of a call: all
};

} // namespace arforge
