// The calls of a batch of images, one after another, each made from what the ones before it sampled.
//
// A table of steps is followed as it stands, or run ahead on drafts: a random number belongs to an image's seed and a
// cell, so deciding a cell again is no other draw, and a draft that comes out again, behind inputs that are all right,
// is what the table samples there. Or each image has a table of its own, which is made as its rows start.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "plan.h"
#include "step_graph.h"

namespace arforge {

// What the cells of a batch are drawn with; refers to what a request has, of whose images `first` is the batch's first.
struct Drawing {
  const std::vector<std::uint64_t>& seeds; // (images of the request)
  const std::vector<std::int64_t>& cells;  // (cells of the plan's grid) that of the canvas which each is
  const std::vector<double>& guidance;     // (images of the request)
  std::int64_t first;

  // Writes what `output` of an image samples a cell of the grid with, where the weight of guidance is `weight`.
  void fill(StepBuffers& buffers, std::int64_t image, std::int64_t output, std::int64_t cell) const;
  // The guidance scale of an image where its weight is `weight`.
  [[nodiscard]] float scale(std::int64_t image, double weight) const;
};

// One batch as it proceeds. Ask for `shape`, fill the buffers of it, run, store; until there is no shape. None of these
// allocates anything.
class Decoding {
public:
  Decoding(const Plan& plan, State start, const Drawing& drawing);
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;
  virtual ~Decoding() = default;

  // Of the next call; none where all is decided.
  [[nodiscard]] virtual std::optional<Shape> shape() const = 0;
  // How much of the plan's length every image has behind it.
  [[nodiscard]] virtual std::int64_t done() const = 0;
  // Engine calls until an image was done.
  [[nodiscard]] virtual std::int64_t passes(std::int64_t image) const = 0;
  virtual void fill(StepBuffers& buffers) = 0;
  // Makes the call, or several where a device feeds itself.
  virtual void run(Engine& engine, const Shape& shape, bool first) { engine.run(shape, first); }
  // The outputs of a call, before it is stored, whose tokens count, for every image.
  [[nodiscard]] virtual const std::vector<std::int64_t>& outputs() const = 0;
  virtual void store(const StepBuffers& buffers) = 0;
  // (images, cells) whose tokens are final, and can be asked for from now on. Allocates.
  [[nodiscard]] virtual std::vector<bool> decided() = 0;

  // The token of a cell, as far as it is decided.
  [[nodiscard]] std::int64_t token(std::int64_t image, std::int64_t cell) const {
    return state_.known[static_cast<std::size_t>(image * state_.columns + cell)];
  }

protected:
  // The known tokens of a row.
  std::int64_t* known(std::int64_t row) { return state_.known.data() + row * state_.columns; }
  // Writes a step's tokens, positions and write index into one row.
  void feed(const PlannedStep& step, std::int64_t row, StepBuffers& buffers);
  // Writes what an image's targets of a step are drawn with.
  void draw_with(const PlannedStep& step, std::int64_t image, StepBuffers& buffers) const;
  // Writes what is seen of prompts into one row's mask (width, slots).
  void show_prompt(std::int64_t row, std::int64_t width, std::int64_t slots, std::uint8_t* mask) const;
  // Writes what all cells are drawn with: numbers (images, cells), or one for each token; one of both is empty.
  void draw_cells(std::vector<float>& uniforms, std::vector<float>& noises) const;
  // Marks what each row sees of prompts, (rows, slots), all zero before; or nothing, if that is empty.
  void show_prompts(std::vector<std::uint8_t>& seen) const;

  const Plan& plan_;
  State state_;
  const Drawing drawing_;
};

// The decoding of a batch. The plan stays the caller's, as does what `drawing` refers to. `engine`: what makes calls by
// itself where it can; NULL: the host makes each.
std::unique_ptr<Decoding> decoding_of(const Plan& plan, State start, const Drawing& drawing, Engine* engine = nullptr);

} // namespace arforge
