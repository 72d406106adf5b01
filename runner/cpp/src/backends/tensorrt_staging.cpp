// What a request has put into the buffers of a step, on its way to the inputs of the step's program.
#include <algorithm>
#include <cstring>

#include "backends/tensorrt_engine.h"
#include "text.h"

namespace arforge {
namespace {

// Whether all rows of a buffer hold the same.
template <class Item>
bool alike(const std::vector<Item>& buffer, std::int64_t rows) {
  const auto row = static_cast<std::ptrdiff_t>(buffer.size() / static_cast<std::size_t>(rows));
  return std::equal(buffer.begin() + row, buffer.end(), buffer.begin());
}

} // namespace

// Where each row of a step's program writes.
const std::int64_t* TensorRTEngine::write_index_of(const Step& step) {
  return reinterpret_cast<const std::int64_t*>(step.write_index->data);
}

void TensorRTEngine::check_filters(const StepBuffers& buffers) const {
  const bool limits = std::any_of(buffers.top_k.begin(), buffers.top_k.end(), [](std::int64_t k) { return k > 0; }) ||
                      std::any_of(buffers.top_p.begin(), buffers.top_p.end(), [](float p) { return p < 1; });
  if (limits && !identity_.filters) {
    refuse("it was built without top-k and top-p", "--filters");
  }
}

// Puts what the buffers hold into the inputs of the step's program.
void TensorRTEngine::stage(Step& step) const {
  check_filters(step.buffers);
  check_alike(step.buffers);
  if (step.mask != nullptr) {
    stage_mask(step);
  }
  for (const Feed& feed : step.feeds) {
    const std::vector<std::int64_t>& from = feed.images ? images_ : rows_;
    for (std::size_t item = 0; item < from.size(); item++) {
      std::memcpy(feed.into + item * feed.pitch, feed.from + static_cast<std::size_t>(from[item]) * feed.bytes,
                  feed.bytes);
    }
  }
  check_places(step);
}

// What rows share that see the same slots, or write to the same.
void TensorRTEngine::check_alike(const StepBuffers& buffers) const {
  const auto refuse_apart = [&](const char* do_what, const char* has) {
    throw Error(Code::engine, text("the rows of a step ", do_what, " different slots, and ", library_.name(), " has ",
                                   has, ": decode images that are at other steps apart"));
  };
  if (shared_mask_ && !alike(buffers.mask, extent_.rows)) {
    refuse_apart("see", "one mask for all");
  }
  if (identity_.views && !alike(buffers.write_index, extent_.rows)) {
    refuse_apart("write to", "caches with slots first");
  }
}

// Rows of one mask write to the same slots, where the graph tells those from what the caches hold.
void TensorRTEngine::check_places(const Step& step) const {
  const std::int64_t* const first = write_index_of(step);
  const std::int64_t* const end = first + rows_.size();
  if (placed_ && facts_.one_mask && !std::all_of(first, end, [&](std::int64_t index) { return index == *first; })) {
    throw Error(Code::engine, text("rows with one mask write to slots [",
                                   listed(std::vector<std::int64_t>(first, end), ""), "], expected the same"));
  }
}

void TensorRTEngine::stage_mask(const Step& step) const {
  const std::vector<std::uint8_t>& mask = step.buffers.mask;
  const auto slots = static_cast<std::size_t>(extent_.slots);
  const std::size_t one = mask.size() / static_cast<std::size_t>(extent_.rows);
  const auto pitch = static_cast<std::size_t>(identity_.slots);
  std::uint8_t* into = step.mask->data;
  for (std::size_t row = 0; row < (shared_mask_ ? 1 : rows_.size()); row++) {
    const std::uint8_t* from = mask.data() + static_cast<std::size_t>(rows_[row]) * one;
    for (const std::uint8_t* const end = from + one; from < end; from += slots, into += pitch) {
      std::memcpy(into, from, slots);
    }
  }
}

} // namespace arforge
