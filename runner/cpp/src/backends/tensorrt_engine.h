// The TensorRT engine: caches in device memory at one address, and a program for each shape of step.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arforge.hpp"
#include "backends/cuda.h"
#include "backends/engine.h"
#include "backends/tensorrt_caches.h"
#include "backends/tensorrt_identity.h"
#include "backends/tensorrt_loops.h"
#include "backends/tensorrt_placed_rows.h"
#include "backends/tensorrt_program.h"
#include "backends/tensorrt_tables.h"

namespace arforge {

// Runs a bundle's TensorRT or TensorRT-RTX engine.
//
// It was built for guided pairs of rows, and for one mask, which all rows share since they are at the same step; of a
// model that takes prompts, each row has its own. A request without guidance has its rows in both halves, and a batch
// that it was not built for is filled up with copies of the last image.
class TensorRTEngine : public Engine {
public:
  // `look_every`: calls that the device makes by itself, where it can, between two looks of the host; 0: all. Throws
  // Error (engine) if the library refuses the engine, or there is no memory for it.
  TensorRTEngine(const Bundle& bundle, TensorRTIdentity identity, Library& library, std::unique_ptr<Gpu> gpu,
                 std::int64_t look_every);

  // The engine that `arforge build` made. Throws Error (engine) if none is built, or fits, or there is no GPU.
  static std::unique_ptr<TensorRTEngine> built(const Bundle& bundle, const Options& options);

  void prepare(const Extent& extent, const std::vector<Shape>& shapes, std::int64_t zero_slots) override;
  StepBuffers& buffers(const Shape& shape) override;
  void clear() override;
  void run(const Shape& shape, bool first) override;
  std::unique_ptr<TableLoop> table_loop(const Plan& plan) override;
  std::unique_ptr<DraftLoop> draft_loop(const Plan& plan) override;
  [[nodiscard]] CacheContent read_cache(std::int64_t row, std::int64_t first, std::int64_t count) override;
  void write_cache(std::int64_t row, std::int64_t first, const CacheContent& content) override;

  [[nodiscard]] const TensorRTIdentity& identity() const { return identity_; }
  [[nodiscard]] const std::vector<std::int64_t>& batches() const { return batches_; } // images it was built for, rising
  [[nodiscard]] Library& library() const { return library_; }
  [[nodiscard]] Gpu& gpu() const { return *gpu_; }

private:
  // An input of a program that is copied for every step, item by item.
  struct Feed {
    const std::uint8_t* from; // in the buffers
    std::uint8_t* into;       // of the program
    std::size_t bytes, pitch; // of an item there, and from one to the next of the program's
    bool images;              // items are images; otherwise rows
  };

  // A program, and the runner's memory of it.
  struct Step {
    Program* program;
    StepBuffers buffers;
    std::vector<Feed> feeds;
    HostTensor* mask; // NULL where the graph makes it
    const HostTensor* write_index;
    const HostTensor* next_tokens;
  };

  using Inputs = std::pair<std::int64_t, std::int64_t>; // width and queries

  [[nodiscard]] TensorRTCaches caches() const;
  void place_rows();
  std::unique_ptr<Step> make_step(const Inputs& inputs);
  Program& program(const Inputs& inputs);
  void check_tensors(Program& program, const ShapeProfile& profile) const;
  void stage(Step& step) const;
  void check_filters(const StepBuffers& buffers) const;
  void check_alike(const StepBuffers& buffers) const;
  void check_places(const Step& step) const;
  void stage_mask(const Step& step) const;
  static const std::int64_t* write_index_of(const Step& step);
  [[noreturn]] void refuse(const std::string& problem, const char* option = nullptr) const;

  const Bundle& bundle_;
  TensorRTIdentity identity_;
  Library& library_;
  std::unique_ptr<Gpu> gpu_;
  std::vector<std::int64_t> batches_;
  bool shared_mask_;       // whether the engine takes one mask for all rows
  std::int64_t longest_;   // prompt, in rows before its last
  Contract given_, plain_; // the step as the engine has it, and as the runner fills it
  LoadedEngine loaded_;
  TensorRTCaches caches_;
  std::optional<PlacedRows> placed_; // where the engine only reads them
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>, std::unique_ptr<Program>> programs_;
  Tables tables_;
  Loops loops_;
  Extent extent_{};
  std::int64_t batch_ = 0;                        // images that the programs of this request decode
  std::vector<std::int64_t> images_, rows_;       // of the programs: the image, or row, of the request that each is
  std::map<Inputs, std::unique_ptr<Step>> steps_; // of this request
};

} // namespace arforge
