#include "backends/tensorrt_table.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backends/tensorrt_between.h"

namespace arforge {
namespace {

constexpr std::size_t GRAPHS_KEPT = 64; // graphs: those of plans with kept cells may never come again

bool ends_with(const std::string& word, const std::string& end) {
  return word.size() >= end.size() && word.compare(word.size() - end.size(), end.size(), end) == 0;
}

} // namespace

TensorRTTable::TensorRTTable(Gpu& gpu, LoadedEngine& loaded, Contract contract, Sizes sizes,
                             const Block::Kinds& settings)
    : gpu_(gpu), loaded_(loaded), contract_(std::move(contract)), sizes_(std::move(sizes)),
      tables_(block_of(gpu, contract_, sizes_,
                       {"last_call", "call_slots", "call_inputs", "call_outputs", "call_drawn", "decided_by",
                        "decided_at", "input_columns", "input_positions", "input_sees", "output_cells", "output_asked",
                        "image_numbers", "row_zeros", "width_numbers", "query_numbers"})),
      batch_(block_of(gpu, contract_, sizes_, {"call_guidance", "cell_uniforms", "cell_noise", "moved", "seen"})),
      settings_(gpu, settings) {
  for (int state = 0; state < 2; state++) {
    known_.push_back(block_of(gpu, contract_, sizes_, {"known"}));
    progress_.push_back(block_of(gpu, contract_, sizes_, {"call", "fault", "fault_call"}));
  }
  placed_["drawn"] = gpu.allocate(kind_of(*find_tensor(contract_.inputs, "drawn"), sizes_).bytes);
  fed_ = settings_.addresses;
  for (const Tensor& tensor : contract_.outputs) {
    if (!is_next(tensor.name)) {
      placed_[tensor.name] = fed_[tensor.name] = gpu.allocate(kind_of(tensor, sizes_).bytes);
    }
  }
  fed_["next_tokens"] = placed_["drawn"];
  placed_.insert(tables_.addresses.begin(), tables_.addresses.end());
  placed_.insert(batch_.addresses.begin(), batch_.addresses.end());
  turns_.resize(2);
  for (std::size_t state = 0; state < 2; state++) {
    for (const Block* const part : {&known_[state], &progress_[state]}) {
      for (const auto& [name, address] : part->addresses) {
        turns_[state][name] = address;
        turns_[1 - state][next_name(name)] = address;
      }
    }
  }
}

bool TensorRTTable::takes(const Program& step) const {
  return std::all_of(settings_.tensors.begin(), settings_.tensors.end(), [&](const auto& setting) {
    const auto own = step.inputs().find(setting.first);
    return own != step.inputs().end() && own->second.shape == setting.second.shape;
  });
}

Program& TensorRTTable::between(const CallKind& kind, std::int32_t profile) {
  std::unique_ptr<Program>& made = between_[kind];
  if (made == nullptr) {
    Places places = placed_;
    places.insert(turns_[0].begin(), turns_[0].end());
    std::unique_ptr<Program> opened = loaded_.program(profile, places);
    Sizes sizes = sizes_;
    sizes["width"] = kind.first;
    sizes["queries"] = kind.second;
    check_contract(loaded_, *opened, contract_, sizes);
    made = std::move(opened);
  }
  return *made;
}

std::vector<Launch*> TensorRTTable::launches(const Calls& calls, std::int64_t first, std::int64_t last) {
  std::vector<Launch*> found;
  for (; first < last; first = std::min(first + LONGEST_GRAPH, last)) {
    Key key{static_cast<std::int64_t>(turn(first)), {}};
    for (std::int64_t call = first; call < std::min(first + LONGEST_GRAPH, last); call++) {
      key.second.push_back(calls.steps[static_cast<std::size_t>(call)]);
      key.second.push_back(calls.behind[static_cast<std::size_t>(call)]);
    }
    found.push_back(&launch(std::move(key)));
  }
  return found;
}

// The launch of a step and the table graph behind it, and so on.
Launch& TensorRTTable::launch(Key key) {
  const auto same = [&](const NamedLaunch& one) { return one.key == key; };
  if (const auto found = std::find_if(launches_.begin(), launches_.end(), same); found != launches_.end()) {
    launches_.splice(launches_.begin(), launches_, found);
    return *launches_.front().launch;
  }
  std::vector<Launch::Pass> passes;
  for (std::size_t index = 0; index < key.second.size(); index += 2) {
    Program& step = *key.second[index];
    std::unique_ptr<Places>& own = own_[&step];
    if (own == nullptr) {
      own = std::make_unique<Places>();
      for (const auto* const side : {&step.inputs(), &step.outputs()}) {
        for (const auto& [name, tensor] : *side) {
          (*own)[name] = fed_.at(name);
        }
      }
    }
    passes.push_back({&step, own.get()});
    passes.push_back({key.second[index + 1], &turns_[(static_cast<std::size_t>(key.first) + index / 2) % 2]});
  }
  launches_.push_front({std::move(key), std::make_unique<Launch>(gpu_, std::move(passes))});
  return *launches_.front().launch;
}

void TensorRTTable::forget_launches(const std::vector<Launch*>& kept) {
  std::size_t count = 0;
  for (auto one = launches_.begin(); one != launches_.end();) {
    const bool stays = count < GRAPHS_KEPT || std::find(kept.begin(), kept.end(), one->launch.get()) != kept.end();
    count++;
    one = stays ? std::next(one) : launches_.erase(one);
  }
}

void TensorRTTable::settle() {
  if (queued_) {
    gpu_.synchronize();
    queued_ = false;
  }
}

void TensorRTTable::place(const Plan& plan) {
  if (plan.number == plan_) {
    return;
  }
  plan_ = 0;
  const PlanTables given(plan);
  for (const auto& [name, into] : tables_.tensors) {
    if (name == "input_sees") {
      const auto pitch = static_cast<std::size_t>(into.shape.back());
      const auto slots = static_cast<std::size_t>(plan.slots);
      std::memset(into.data, 0, into.bytes);
      for (std::size_t input = 0; input < given.input_sees.size() / slots; input++) {
        std::memcpy(into.data + input * pitch, given.input_sees.data() + input * slots, slots);
      }
    } else if (ends_with(name, "_numbers")) {
      auto* const numbers = reinterpret_cast<std::int64_t*>(into.data);
      std::iota(numbers, numbers + into.shape.front(), 0);
    } else {
      const auto numbers = given.numbers.find(name);
      put(into, numbers == given.numbers.end() ? std::vector<std::int64_t>() : numbers->second,
          name == "decided_by" ? NO_CALL : 0);
    }
  }
  queued_ = true;
  tables_.upload(gpu_);
  plan_ = plan.number;
}

void TensorRTTable::begin(Program& first) {
  Block& progress = progress_[0];
  for (const auto& [name, tensor] : progress.tensors) {
    put(tensor, {}, name == "call" ? -1 : 0);
  }
  queued_ = true;
  for (const Block* const given : {&batch_, &known_[0], &progress, &settings_}) {
    given->upload(gpu_);
  }
  first.execute(turns_[0]);
  done_ = 0;
  fetched_ = -1;
}

void TensorRTTable::run(const std::vector<Launch*>& launches, std::int64_t done, bool last) {
  queued_ = true;
  for (Launch* const one : launches) {
    one->start();
  }
  done_ = done;
  progress_[turn(done_)].download(gpu_);
  if (last) {
    known_[turn(done_)].download(gpu_);
    fetched_ = done_;
  }
  gpu_.synchronize();
  queued_ = false;
}

const std::int64_t* TensorRTTable::progress(const std::string& name) const {
  return reinterpret_cast<const std::int64_t*>(progress_[turn(done_)].tensors.at(name).data);
}

const std::int64_t* TensorRTTable::fetch_known() {
  Block& known = known_[turn(done_)];
  if (fetched_ != done_) {
    known.download(gpu_);
    gpu_.synchronize();
    fetched_ = done_;
  }
  return reinterpret_cast<const std::int64_t*>(known.tensors.at("known").data);
}

} // namespace arforge
