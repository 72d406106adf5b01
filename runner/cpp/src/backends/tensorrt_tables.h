// The calls by tables that a TensorRT engine has, whose table graph is loaded when it is first wanted.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "backends/table_loop.h"
#include "backends/tensorrt_between.h"
#include "backends/tensorrt_identity.h"
#include "backends/tensorrt_table.h"

namespace arforge {

class Tables {
public:
  // The step's program of a width and queries, for the batch that is prepared for.
  using StepOf = std::function<Program&(const CallKind&)>;

  // Throws Error (engine) of settings that the step lacks.
  using Check = std::function<void(const StepBuffers&)>;

  // `look_every`: calls between two looks of the host; 0: all.
  Tables(const Bundle& bundle, const TensorRTIdentity& identity, Library& library, Gpu& gpu, std::int64_t look_every)
      : bundle_(bundle), identity_(identity), built_(identity.table ? &*identity.table : nullptr), library_(library),
        gpu_(gpu), look_every_(look_every) {}

  // The calls of a batch of that plan; NULL where the engine has no room for its tables, or not all of its calls.
  std::unique_ptr<TableLoop> loop(const Plan& plan, const SpreadBatch& batch, const StepOf& step_of, Check check);

private:
  [[nodiscard]] bool fits(const Plan& plan, std::int64_t images) const;
  [[nodiscard]] std::int32_t profile(std::int64_t images, const CallKind& kind) const; // -1: none
  TensorRTTable& table(std::int64_t images, Program& step);

  const Bundle& bundle_;
  const TensorRTIdentity& identity_;
  const TableIdentity* built_; // NULL: none
  Library& library_;
  Gpu& gpu_;
  std::int64_t look_every_;
  std::unique_ptr<LoadedEngine> loaded_;
  std::map<std::int64_t, std::unique_ptr<TensorRTTable>> made_; // by images
};

} // namespace arforge
