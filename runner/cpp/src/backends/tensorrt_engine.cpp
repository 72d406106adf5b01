#include "backends/tensorrt_engine.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "text.h"

namespace arforge {
namespace {

// The graph that an engine without weights takes them from.
std::optional<std::filesystem::path> stripped_from(const Bundle& bundle, const TensorRTIdentity& identity) {
  return identity.strip_weights ? std::optional(bundle.root / std::filesystem::u8path(identity.lowered)) : std::nullopt;
}

} // namespace

std::unique_ptr<TensorRTEngine> TensorRTEngine::built(const Bundle& bundle, const Options& options) {
  std::vector<TensorRTIdentity> identities = find_tensorrt_engines(bundle, options.target, options.precision);
  Library& library = load_library(options.target, options.plugin);
  auto gpu = std::make_unique<Gpu>();
  TensorRTIdentity identity = choose_engine(bundle, std::move(identities), library.name(), gpu->compute_capability());
  return std::make_unique<TensorRTEngine>(bundle, std::move(identity), library, std::move(gpu),
                                          options.look_every.value_or(LOOK_EVERY));
}

TensorRTEngine::TensorRTEngine(const Bundle& bundle, TensorRTIdentity identity, Library& library,
                               std::unique_ptr<Gpu> gpu, std::int64_t look_every)
    : Engine(facts_of(bundle, identity)), bundle_(bundle), identity_(std::move(identity)), library_(library),
      gpu_(std::move(gpu)), batches_(batches_of(identity_)), shared_mask_(has_one_mask(bundle, identity_)),
      longest_(longest_prompt(identity_)),
      given_(lowered_contract(bundle.model, bundle.sampler.graph(), identity_.types, identity_.filters,
                              identity_.own_mask, identity_.views)),
      plain_(contract_of(bundle.model, bundle.sampler.graph(), identity_.types)),
      loaded_(bundle.root / std::filesystem::u8path(identity_.engine), library, *gpu_,
              stripped_from(bundle, identity_)),
      caches_(caches()), tables_(bundle, identity_, library, *gpu_, look_every),
      loops_(bundle, identity_, library, *gpu_, look_every) {
  if (identity_.read_only) {
    std::vector<PlacedRows::Step> steps(identity_.profiles.size());
    std::transform(identity_.profiles.begin(), identity_.profiles.end(), steps.begin(),
                   [](const ShapeProfile& one) { return PlacedRows::Step{guided_rows(one.images, true), one.width}; });
    placed_.emplace(*gpu_, caches_, steps);
  }
}

// Throws Error (engine) unless the engine writes each cache where it reads it, if it writes to them.
TensorRTCaches TensorRTEngine::caches() const {
  for (const std::string& name : cache_names(bundle_.model.caches)) {
    if (!identity_.read_only && !loaded_.aliases(written_name(name), name)) {
      refuse(text("it does not update ", name, " in place"));
    }
  }
  return {*gpu_, bundle_.model, identity_, guided_rows(batches_.back(), true)};
}

void TensorRTEngine::refuse(const std::string& problem, const char* option) const {
  const std::string hint = option != nullptr ? text(" (with ", option, ")") : "";
  throw Error(Code::engine, text(engine_name(bundle_, identity_), ": ", problem, "; rebuild it", hint, ": `",
                                 build_command(bundle_, identity_), "`"));
}

void TensorRTEngine::prepare(const Extent& extent, const std::vector<Shape>& shapes, std::int64_t zero_slots) {
  if (extent.condition > std::max<std::int64_t>(longest_, 1)) {
    refuse(text("it was built for prompts of up to ", 1 + longest_, " tokens, this one has ", 1 + extent.condition));
  }
  if (extent.slots > identity_.slots) {
    refuse(text("it has ", identity_.slots, " cache slots, the schedule",
                longest_ > 0 ? " and its prompts need " : " needs ", extent.slots),
           "--schedule");
  }
  if (extent.images > batches_.back()) {
    refuse(text("it decodes up to ", batches_.back(), " images together, not ", extent.images), "--images");
  }
  if (!(extent_ == extent)) {
    steps_.clear();
    extent_ = extent;
    place_rows();
  }
  for (const Shape& shape : shapes) {
    (void)buffers(shape);
  }
  if (zero_slots > 0) {
    caches_.clear(zero_slots, guided_rows(batch_, true));
  }
}

// Which image of the request each image of the programs is, or repeats; and which row each row.
void TensorRTEngine::place_rows() {
  batch_ = *std::lower_bound(batches_.begin(), batches_.end(), extent_.images);
  images_.clear();
  for (std::int64_t image = 0; image < batch_; image++) {
    images_.push_back(std::min(image, extent_.images - 1));
  }
  rows_ = images_;
  for (const std::int64_t image : images_) {
    rows_.push_back(image + extent_.rows - extent_.images);
  }
}

StepBuffers& TensorRTEngine::buffers(const Shape& shape) {
  const Inputs inputs{shape.width, shape.queries};
  auto place = steps_.find(inputs);
  if (place == steps_.end()) {
    place = steps_.emplace(inputs, make_step(inputs)).first;
  }
  return place->second->buffers;
}

std::unique_ptr<TensorRTEngine::Step> TensorRTEngine::make_step(const Inputs& inputs) {
  const Sizes sizes = step_sizes(extent_, {inputs.first, inputs.second, extent_.slots});
  Program& chosen = program(inputs);
  auto step = std::make_unique<Step>(Step{&chosen,
                                          make_buffers(plain_, sizes),
                                          {},
                                          chosen.input("mask"),
                                          chosen.input("write_index"),
                                          chosen.output("next_tokens")});
  if (step->mask != nullptr) {
    std::memset(step->mask->data, 0, step->mask->bytes);
  }
  step->buffers.each([&](const char* name, const auto& buffer) {
    const HostTensor* const into = chosen.input(name);
    if (into == nullptr || into == step->mask || buffer.empty()) {
      return;
    }
    const bool images = find_tensor(given_.inputs, name)->shape.front().word == "images";
    const std::size_t items = images ? images_.size() : rows_.size();
    const auto own = static_cast<std::size_t>(images ? extent_.images : extent_.rows);
    step->feeds.push_back({reinterpret_cast<const std::uint8_t*>(buffer.data()), into->data,
                           buffer.size() * sizeof buffer[0] / own, into->bytes / items, images});
  });
  return step;
}

// The one for this request's batch that has the least room for a prompt.
Program& TensorRTEngine::program(const Inputs& inputs) {
  const std::int64_t read = conditioned(bundle_.model) ? extent_.condition : 0;
  std::optional<std::size_t> best;
  for (std::size_t index = 0; index < identity_.profiles.size(); index++) {
    const ShapeProfile& one = identity_.profiles[index];
    const bool fits =
        one.images == batch_ && one.width == inputs.first && one.queries == inputs.second && one.condition >= read;
    best = fits && (!best || one.condition <= identity_.profiles[*best].condition) ? index : best;
  }
  if (!best) {
    const std::string asked = inputs.second > 0 ? text(" and ", inputs.second, " queries") : "";
    refuse(text("it was not built for steps of ", inputs.first, " tokens", asked), "--schedule");
  }
  const ShapeProfile& profile = identity_.profiles[*best];
  std::unique_ptr<Program>& made = programs_[{profile.images, profile.width, profile.queries, profile.condition}];
  if (made == nullptr) {
    const Places places =
        placed_ ? placed_->places({guided_rows(profile.images, true), profile.width}) : caches_.places();
    std::unique_ptr<Program> opened = loaded_.program(static_cast<std::int32_t>(*best), places);
    check_tensors(*opened, profile);
    made = std::move(opened);
  }
  return *made;
}

// Throws Error (engine) unless what a program is given, and the tokens that it gives, are what its identity says.
void TensorRTEngine::check_tensors(Program& program, const ShapeProfile& profile) const {
  const Extent whole{profile.images, guided_rows(profile.images, true), identity_.slots, profile.condition};
  Sizes sizes = step_sizes(whole, {profile.width, profile.queries, identity_.slots});
  sizes.merge(row_sizes(bundle_.model, profile.images));
  const std::map<std::string, HostTensor> kinds = program.kinds();
  std::size_t inputs = 0;
  const auto check = [&](const Tensor& tensor, const HostTensor* found) {
    const std::vector<std::int64_t> expected = sizes_of(tensor, sizes);
    if (found == nullptr || found->type != tensor.type || found->shape != expected) {
      refuse(text("its ", tensor.name, " is not ", name_of(tensor.type), " [", listed(expected, ""), "]"));
    }
  };
  for (const Tensor& tensor : given_.inputs) {
    const auto found = kinds.find(tensor.name);
    check(tensor, found == kinds.end() ? nullptr : &found->second);
    inputs += program.inputs().count(tensor.name);
  }
  if (program.inputs().size() != inputs) {
    refuse(text("it has ", program.inputs().size(), " inputs beside its caches, expected ", inputs));
  }
  check(given_.outputs.front(), program.output(given_.outputs.front().name));
}

void TensorRTEngine::run(const Shape& shape, bool /*first*/) {
  Step& step = *steps_.find({shape.width, shape.queries})->second;
  stage(step);
  step.program->run();
  if (placed_) {
    placed_->put({static_cast<std::int64_t>(rows_.size()), shape.width}, write_index_of(step));
  }
  std::memcpy(step.buffers.next_tokens.data(), step.next_tokens->data,
              step.buffers.next_tokens.size() * sizeof step.buffers.next_tokens[0]);
}

std::unique_ptr<TableLoop> TensorRTEngine::table_loop(const Plan& plan) {
  return tables_.loop(
      plan, {extent_, images_, rows_}, [this](const Inputs& inputs) -> Program& { return program(inputs); },
      [this](const StepBuffers& settings) { check_filters(settings); });
}

std::unique_ptr<DraftLoop> TensorRTEngine::draft_loop(const Plan& plan) {
  const Inputs first{plan.first_width, 0};
  return loops_.loop(
      plan, {extent_, images_, rows_}, [this](std::int64_t width) -> Program& { return program({width, 0}); },
      [this, first] { stage(*steps_.at(first)); });
}

void TensorRTEngine::clear() { caches_.clear(); }

CacheContent TensorRTEngine::read_cache(std::int64_t row, std::int64_t first, std::int64_t count) {
  const auto place = std::find(rows_.begin(), rows_.end(), row) - rows_.begin();
  return caches_.read(place, static_cast<std::int64_t>(rows_.size()), first, count);
}

void TensorRTEngine::write_cache(std::int64_t row, std::int64_t first, const CacheContent& content) {
  for (std::size_t place = 0; place < rows_.size(); place++) {
    if (rows_[place] == row) {
      caches_.write(static_cast<std::int64_t>(place), static_cast<std::int64_t>(rows_.size()), first, content);
    }
  }
  gpu_->synchronize(); // before what is copied may go
}

} // namespace arforge
