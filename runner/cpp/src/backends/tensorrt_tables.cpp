#include "backends/tensorrt_tables.h"

#include <algorithm>
#include <utility>

namespace arforge {
namespace {

CallKind kind_of(const PlannedStep& step) { return {step.shape.width, step.shape.queries}; }

// Calls between two looks.
struct Stretch {
  std::vector<Launch*> launches;
  std::int64_t end; // calls that are done then
};

// The calls of one batch as a request sees it, whose images may be fewer than the programs'.
class BatchTable : public TableLoop {
public:
  BatchTable(TensorRTTable& table, const SpreadBatch& batch, Tables::Check check, Program& first,
             std::vector<Stretch> stretches, TableInputs inputs)
      : table_(table), batch_(batch), check_(std::move(check)), first_(first), stretches_(std::move(stretches)),
        inputs_(std::move(inputs)) {}

  TableInputs& inputs() override { return inputs_; }
  void begin(const StepBuffers& settings) override;
  std::int64_t run() override;
  [[nodiscard]] std::int64_t fault(std::int64_t image) const override { return table_.progress("fault")[image]; }
  [[nodiscard]] std::int64_t fault_call(std::int64_t image) const override {
    return table_.progress("fault_call")[image];
  }
  const std::int64_t* known(std::int64_t row) override;

private:
  TensorRTTable& table_;
  const SpreadBatch batch_;
  const Tables::Check check_;
  Program& first_;
  std::vector<Stretch> stretches_;
  std::size_t next_ = 0; // of those
  TableInputs inputs_;
};

void BatchTable::begin(const StepBuffers& settings) {
  check_(settings);
  batch_.put_settings(settings, table_.settings().tensors);
  batch_.put_rows(inputs_.known, table_.known().tensors, "known");
  const std::map<std::string, HostTensor>& own = table_.batch().tensors;
  batch_.put_images(inputs_.call_guidance, own, "call_guidance");
  batch_.put_images(inputs_.cell_uniforms, own, "cell_uniforms");
  batch_.put_images(inputs_.cell_noise, own, "cell_noise");
  batch_.put_rows(inputs_.moved, own, "moved");
  batch_.put_rows(inputs_.seen, own, "seen");
  table_.begin(first_);
  next_ = 0;
}

std::int64_t BatchTable::run() {
  const Stretch& now = stretches_[next_++];
  table_.run(now.launches, now.end, next_ == stretches_.size());
  return now.end;
}

const std::int64_t* BatchTable::known(std::int64_t row) {
  const auto place = std::find(batch_.rows.begin(), batch_.rows.end(), row) - batch_.rows.begin();
  return table_.fetch_known() + place * table_.known().tensors.at("known").shape.back();
}

} // namespace

std::int32_t Tables::profile(std::int64_t images, const CallKind& kind) const {
  const std::vector<TableProfile>& listed = built_->profiles;
  const auto found = std::find_if(listed.begin(), listed.end(), [&](const TableProfile& one) {
    return one.images == images && one.width == kind.first && one.queries == kind.second;
  });
  return found == listed.end() ? -1 : static_cast<std::int32_t>(found - listed.begin());
}

bool Tables::fits(const Plan& plan, std::int64_t images) const {
  return built_ != nullptr && !identity_.read_only && is_table(plan) && plan.cells == bundle_.model.cells() &&
         plan.slots <= identity_.slots && built_->sizes.hold(TableSizes::of(plan)) &&
         std::all_of(plan.steps.begin(), plan.steps.end(),
                     [&](const PlannedStep& step) { return profile(images, kind_of(step)) >= 0; });
}

TensorRTTable& Tables::table(std::int64_t images, Program& step) {
  const TableIdentity& built = *built_;
  const bool one_mask = !identity_.own_mask && !conditioned(bundle_.model);
  Contract contract = table_contract(bundle_.model, built.sizes, bundle_.sampler.graph(), identity_.slots, one_mask,
                                     identity_.own_mask);
  if (loaded_ == nullptr) {
    loaded_ = std::make_unique<LoadedEngine>(bundle_.root / std::filesystem::u8path(built.engine), library_, gpu_);
  }
  std::unique_ptr<TensorRTTable>& made = made_[images];
  if (made == nullptr) {
    Sizes sizes = {{"images", images}, {"rows", guided_rows(images, true)}, {"drawn", images * built.sizes.most}};
    for (const TableProfile& one : built.profiles) {
      sizes["width"] = std::max(sizes["width"], one.width);
      sizes["queries"] = std::max(sizes["queries"], one.queries);
    }
    Block::Kinds settings;
    for (const auto& [name, kind] : step.inputs()) {
      if (find_tensor(contract.outputs, name) == nullptr) {
        settings.emplace_back(name, kind);
      }
    }
    made = std::make_unique<TensorRTTable>(gpu_, *loaded_, std::move(contract), std::move(sizes), settings);
  }
  return *made;
}

std::unique_ptr<TableLoop> Tables::loop(const Plan& plan, const SpreadBatch& batch, const StepOf& step_of,
                                        Check check) {
  const auto images = static_cast<std::int64_t>(batch.images.size());
  if (!fits(plan, images)) {
    return nullptr;
  }
  TensorRTTable& own = table(images, step_of(kind_of(plan.steps.front())));
  own.settle();
  TensorRTTable::Calls calls;
  std::vector<Program*> before;
  for (const PlannedStep& step : plan.steps) {
    calls.steps.push_back(&step_of(kind_of(step)));
    if (!own.takes(*calls.steps.back())) { // with room for longer prompts
      return nullptr;
    }
    before.push_back(&own.between(kind_of(step), profile(images, kind_of(step))));
  }
  calls.behind.assign(before.begin() + 1, before.end());
  calls.behind.push_back(before.back());
  const auto count = static_cast<std::int64_t>(plan.steps.size());
  std::vector<Stretch> stretches;
  std::vector<Launch*> all;
  for (std::int64_t first = 0; first < count; first = stretches.back().end) {
    const std::int64_t end = look_every_ == 0 ? count : std::min(first + look_every_, count);
    stretches.push_back({own.launches(calls, first, end), end});
    all.insert(all.end(), stretches.back().launches.begin(), stretches.back().launches.end());
  }
  own.forget_launches(all);
  own.place(plan);
  const Extent& extent = batch.extent;
  const std::int64_t columns = plan.cells + plan.conditions + plan.specials;
  const bool noise = own.batch().tensors.count("cell_noise") > 0;
  const std::size_t cells = entries_of({extent.images, plan.cells});
  const auto vocabulary = static_cast<std::size_t>(bundle_.model.vocabulary);
  TableInputs inputs;
  inputs.known.resize(entries_of({extent.rows, columns}));
  inputs.call_guidance.resize(entries_of({extent.images, count}));
  inputs.cell_uniforms.resize(noise ? 0 : cells);
  inputs.cell_noise.resize(noise ? cells * vocabulary : 0);
  inputs.moved.resize(static_cast<std::size_t>(extent.rows));
  inputs.seen.resize(own.batch().tensors.count("seen") > 0 ? entries_of({extent.rows, plan.slots}) : 0);
  return std::make_unique<BatchTable>(own, batch, std::move(check), *before.front(), std::move(stretches),
                                      std::move(inputs));
}

} // namespace arforge
