#include "backends/tensorrt_loops.h"

#include <algorithm>
#include <filesystem>

#include "loop_graph.h"

namespace arforge {
namespace {

// A loop as a request sees it, whose images may be fewer than the programs'.
class BatchLoop : public DraftLoop {
public:
  BatchLoop(TensorRTLoop& loop, const SpreadBatch& batch, std::int64_t cells, Loops::Stage stage, LoopInputs inputs)
      : loop_(loop), batch_(batch), cells_(cells), stage_(std::move(stage)), inputs_(std::move(inputs)) {}

  LoopInputs& inputs() override { return inputs_; }
  void begin(const StepBuffers& first) override;
  void run() override { loop_.run(); }
  [[nodiscard]] std::int64_t place(std::int64_t image) const override { return loop_.progress("place")[image]; }
  [[nodiscard]] std::int64_t passes(std::int64_t image) const override { return loop_.progress("passes")[image]; }
  [[nodiscard]] std::int64_t fault(std::int64_t image) const override { return loop_.progress("fault")[image]; }
  const std::int64_t* tokens(std::int64_t image) override { return loop_.fetch_known() + image * cells_; }

private:
  TensorRTLoop& loop_;
  const SpreadBatch batch_;
  const std::int64_t cells_;
  const Loops::Stage stage_;
  LoopInputs inputs_;
};

void BatchLoop::begin(const StepBuffers& first) {
  stage_();
  batch_.put_settings(first, loop_.settings());
  const std::map<std::string, HostTensor>& tables = loop_.tables();
  put(tables.at("line_tokens"), inputs_.line_tokens, 0);
  batch_.put_images(inputs_.line_guidance, tables, "line_guidance");
  batch_.put_images(inputs_.cell_uniforms, tables, "cell_uniforms");
  batch_.put_images(inputs_.cell_noise, tables, "cell_noise");
  batch_.put_rows(inputs_.first_tokens, tables, "first_tokens");
  batch_.put_rows(inputs_.moved, tables, "moved");
  batch_.put_rows(inputs_.seen, tables, "seen");
  loop_.begin();
}

} // namespace

Loops::Loops(const Bundle& bundle, const TensorRTIdentity& identity, Library& library, Gpu& gpu,
             std::int64_t look_every)
    : bundle_(bundle), identity_(identity), built_(identity.loop ? &*identity.loop : nullptr), library_(library),
      gpu_(gpu), calls_(std::min(look_every == 0 ? LOOK_EVERY : look_every, LONGEST_GRAPH)) {
  calls_ += calls_ % 2;
}

std::int32_t Loops::profile(std::int64_t images, std::int64_t fed, std::int64_t width) const {
  const std::vector<LoopProfile>& listed = built_->profiles;
  const auto found = std::find_if(listed.begin(), listed.end(), [&](const LoopProfile& one) {
    return one.images == images && one.fed == fed && one.width == width;
  });
  return found == listed.end() ? -1 : static_cast<std::int32_t>(found - listed.begin());
}

TensorRTLoop& Loops::made(std::int64_t images, std::int64_t later, const TensorRTLoop::Steps& steps) {
  std::unique_ptr<TensorRTLoop>& own = made_[{&steps.first, &steps.later}];
  if (own == nullptr) {
    if (loaded_ == nullptr) {
      loaded_ = std::make_unique<LoadedEngine>(bundle_.root / std::filesystem::u8path(built_->engine), library_, gpu_);
    }
    const LoopSizes sizes{built_->inputs, identity_.slots, has_one_mask(bundle_, identity_), identity_.own_mask};
    own = std::make_unique<TensorRTLoop>(
        gpu_, *loaded_, loop_contract(bundle_.model, sizes, bundle_.sampler.graph()),
        Sizes{{"images", images}, {"rows", guided_rows(images, true)}, {"fed", later}, {"width", later}}, steps,
        calls_);
  }
  return *own;
}

std::unique_ptr<DraftLoop> Loops::loop(const Plan& plan, const SpreadBatch& batch, const StepOf& step_of, Stage stage) {
  const Line* const line = line_of(plan);
  if (built_ == nullptr || identity_.read_only || line == nullptr || line->inputs() != built_->inputs ||
      plan.cells != bundle_.model.cells()) {
    return nullptr;
  }
  const auto images = static_cast<std::int64_t>(batch.images.size());
  const std::int32_t enter = profile(images, plan.first_width, plan.jacobi_width);
  const std::int32_t turn = profile(images, plan.jacobi_width, plan.jacobi_width);
  if (enter < 0 || turn < 0) {
    return nullptr;
  }
  TensorRTLoop& own =
      made(images, plan.jacobi_width, {step_of(plan.first_width), step_of(plan.jacobi_width), enter, turn});
  own.settle();
  for (const auto& [name, numbers] : LineTables(plan, *line).numbers) {
    put(own.tables().at(name), numbers, 0);
  }
  own.put_widths(plan.first_width, plan.jacobi_width);
  const Extent& extent = batch.extent;
  const bool noise = own.tables().count("cell_noise") > 0;
  const std::size_t cells = entries_of({extent.images, plan.cells});
  LoopInputs inputs;
  inputs.line_tokens.resize(static_cast<std::size_t>(built_->inputs));
  inputs.line_guidance.resize(entries_of({extent.images, built_->inputs}));
  inputs.cell_uniforms.resize(noise ? 0 : cells);
  inputs.cell_noise.resize(noise ? cells * static_cast<std::size_t>(bundle_.model.vocabulary) : 0);
  inputs.first_tokens.resize(static_cast<std::size_t>(extent.rows));
  inputs.moved.resize(static_cast<std::size_t>(extent.rows));
  const bool prompts = conditioned(bundle_.model) && own.tables().count("seen") > 0;
  inputs.seen.resize(prompts ? entries_of({extent.rows, plan.slots}) : 0);
  return std::make_unique<BatchLoop>(own, batch, plan.cells, std::move(stage), std::move(inputs));
}

} // namespace arforge
