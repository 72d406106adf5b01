// Running ahead on drafts where a device makes the calls by itself: the host gives the first, and what the others are
// made of.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backends/draft_loop.h"
#include "jacobi_decoding.h"

namespace arforge {

// As `JacobiDecoding`, but that the device gets on by several calls between two looks of the host.
class LoopedDecoding : public JacobiDecoding {
public:
  LoopedDecoding(const Plan& plan, State start, const Drawing& drawing, std::unique_ptr<DraftLoop> loop);

  [[nodiscard]] const std::vector<std::int64_t>& outputs() const override { return first_output_; }
  void fill(StepBuffers& buffers) override;
  void run(Engine& engine, const Shape& shape, bool first) override;
  void store(const StepBuffers& buffers) override;
  [[nodiscard]] std::vector<bool> decided() override;

private:
  void describe(LoopInputs& batch) const;
  void fetch();

  std::unique_ptr<DraftLoop> loop_;
  std::vector<std::int64_t> first_output_{0}; // where a fault is put
  bool begun_ = false;
};

} // namespace arforge
