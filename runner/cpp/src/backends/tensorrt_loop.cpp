#include "backends/tensorrt_loop.h"

#include <iterator>

#include "table_graph.h"

namespace arforge {
namespace {

// Of the state, what each look fetches.
Block progress_of(Gpu& gpu, const Contract& contract, const Sizes& sizes) {
  return block_of(gpu, contract, sizes, {"place", "passes", "fault"});
}

void zero(const Block& block) {
  for (const auto& [name, tensor] : block.tensors) {
    put(tensor, {}, 0);
  }
}

} // namespace

TensorRTLoop::TensorRTLoop(Gpu& gpu, LoadedEngine& loaded, const Contract& contract, const Sizes& sizes,
                           const Steps& steps, std::int64_t calls)
    : gpu_(gpu), loaded_(loaded), steps_(steps),
      tables_(block_of(gpu, contract, sizes,
                       {"line_tokens", "line_positions", "line_sources", "line_targets", "line_reached",
                        "line_guidance", "deciders", "feeders", "cell_uniforms", "cell_noise", "first_tokens",
                        "first_slot", "moved", "offsets", "fed", "seen"})),
      width_(block_of(gpu, contract, sizes, {"fed"})),
      known_{{block_of(gpu, contract, sizes, {"known"}), block_of(gpu, contract, sizes, {"known"})}},
      progress_{{progress_of(gpu, contract, sizes), progress_of(gpu, contract, sizes)}} {
  for (std::size_t state = 0; state < 2; state++) {
    for (const Block* const part : {&known_[state], &progress_[state]}) {
      for (const auto& [name, address] : part->addresses) {
        turns_[state][name] = address;
        turns_[1 - state][next_name(name)] = address;
      }
    }
  }
  const bool apart = &steps.first != &steps.later;
  for (const auto& [name, tensor] : steps.later.inputs()) {
    if (apart && find_tensor(contract.outputs, name) == nullptr) {
      settings_.emplace(name, tensor);
    }
  }
  behind_later_ = between(steps.behind_later, steps.later, contract, sizes, {});
  if (apart) {
    Sizes entering = sizes;
    entering["fed"] = steps.first.output("next_tokens")->shape.back();
    behind_first_ = between(steps.behind_first, steps.first, contract, entering, width_.addresses);
  }
  std::vector<Launch::Pass> beginning = {{&steps.first, &nowhere_},
                                         {(apart ? behind_first_ : behind_later_).get(), turns_.data()}};
  std::vector<Launch::Pass> going_on;
  for (std::int64_t call = 0; call < calls; call++) {
    const Launch::Pass passes[] = {{&steps.later, &nowhere_},
                                   {behind_later_.get(), &turns_[static_cast<std::size_t>(call % 2)]}};
    going_on.insert(going_on.end(), std::begin(passes), std::end(passes));
    if (call > 0) {
      beginning.insert(beginning.end(), std::begin(passes), std::end(passes));
    }
  }
  beginning_ = std::make_unique<Launch>(gpu, std::move(beginning));
  going_on_ = std::make_unique<Launch>(gpu, std::move(going_on));
}

// The loop graph behind a step, from the first state to the other one. `width`: where that step's lies, if apart.
std::unique_ptr<Program> TensorRTLoop::between(std::int32_t profile, const Program& fed, const Contract& contract,
                                               const Sizes& sizes, const Places& width) {
  Places places = width;
  places.insert(tables_.addresses.begin(), tables_.addresses.end());
  places.insert(turns_[0].begin(), turns_[0].end());
  for (const auto& [name, address] : steps_.later.input_places()) {
    if (find_tensor(contract.outputs, name) != nullptr) {
      places.emplace(name, address);
    }
  }
  places["drawn"] = fed.output_places().at("next_tokens");
  std::unique_ptr<Program> made = loaded_.program(profile, places);
  check_contract(loaded_, *made, contract, sizes);
  return made;
}

void TensorRTLoop::settle() {
  if (queued_) {
    gpu_.synchronize();
    queued_ = false;
  }
}

void TensorRTLoop::put_widths(std::int64_t first, std::int64_t later) {
  put(width_.tensors.at("fed"), {}, first);
  put(tables_.tensors.at("fed"), {}, later);
}

void TensorRTLoop::begin() {
  zero(known_[0]);
  zero(progress_[0]);
  queued_ = true;
  steps_.first.upload();
  if (&steps_.first != &steps_.later) {
    for (const auto& [name, tensor] : settings_) {
      gpu_.upload(steps_.later.input_places().at(name), tensor.data, tensor.bytes);
    }
    width_.upload(gpu_);
  }
  for (const Block* const block : {&tables_, &known_[0], &progress_[0]}) {
    block->upload(gpu_);
  }
  begun_ = fetched_ = false;
}

void TensorRTLoop::run() {
  queued_ = true;
  (begun_ ? going_on_ : beginning_)->start();
  begun_ = true;
  progress_[0].download(gpu_);
  gpu_.synchronize();
  queued_ = fetched_ = false;
}

const std::int64_t* TensorRTLoop::progress(const char* name) const {
  return reinterpret_cast<const std::int64_t*>(progress_[0].tensors.at(name).data);
}

const std::int64_t* TensorRTLoop::fetch_known() {
  if (!fetched_) {
    known_[0].download(gpu_);
    gpu_.synchronize();
    fetched_ = true;
  }
  return reinterpret_cast<const std::int64_t*>(known_[0].tensors.at("known").data);
}

} // namespace arforge
