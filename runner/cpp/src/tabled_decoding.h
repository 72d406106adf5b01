// Decoding by a table whose calls a device makes by itself: the table lies there, and what is drawn stays there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backends/table_loop.h"
#include "decoding.h"

namespace arforge {

// The device gets on by several calls between two looks of the host, at which a fault is told and a token is there.
class TabledDecoding : public Decoding {
public:
  TabledDecoding(const Plan& plan, State start, const Drawing& drawing, std::unique_ptr<TableLoop> loop);

  [[nodiscard]] std::optional<Shape> shape() const override;
  [[nodiscard]] std::int64_t done() const override { return done_; }
  [[nodiscard]] std::int64_t passes(std::int64_t /*image*/) const override { return done_; }
  [[nodiscard]] const std::vector<std::int64_t>& outputs() const override { return first_output_; }
  void fill(StepBuffers& buffers) override;
  void run(Engine& engine, const Shape& shape, bool first) override;
  void store(const StepBuffers& buffers) override;
  [[nodiscard]] std::vector<bool> decided() override;

private:
  [[nodiscard]] std::int64_t calls() const { return static_cast<std::int64_t>(plan_.steps.size()); }
  void describe(TableInputs& batch) const;
  void fetch();

  std::unique_ptr<TableLoop> loop_;
  std::vector<std::int64_t> first_output_{0}; // where a fault is put
  std::int64_t done_ = 0, reached_ = 0;
};

} // namespace arforge
