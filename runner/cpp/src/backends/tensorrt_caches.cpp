#include "backends/tensorrt_caches.h"

namespace arforge {

TensorRTCaches::TensorRTCaches(Gpu& gpu, const ModelFacts& model, const TensorRTIdentity& identity, std::int64_t rows)
    : gpu_(gpu), slots_first_(identity.views), kv_heads_(static_cast<std::size_t>(model.kv_heads)),
      slots_(identity.slots), rows_(rows), slot_bytes_(entries_of({model.head_size}) * bytes_of(identity.types)),
      head_bytes_(entries_of({slots_, static_cast<std::int64_t>(slot_bytes_)})), names_(cache_names(model.caches)) {
  const std::size_t size = entries_of({rows, model.kv_heads, static_cast<std::int64_t>(head_bytes_)});
  if (identity.read_only) {
    planes_ = Planes::of(head_bytes_, static_cast<std::size_t>(rows) * kv_heads_);
    planes_.place = gpu.allocate(planes_.bytes() * names_.size());
  }
  for (std::size_t cache = 0; cache < names_.size(); cache++) {
    addresses_.push_back(identity.read_only ? planes_.plane(cache) : gpu.allocate(size));
  }
  clear(); // NaN in a slot that no mask lets through would spoil its row all the same
}

Places TensorRTCaches::places() const {
  Places found;
  for (std::size_t cache = 0; cache < names_.size(); cache++) {
    const std::string& name = names_[cache];
    found[name] = found[written_name(name)] = addresses_[cache];
    if (slots_first_) {
      found[view_name(name)] = addresses_[cache];
    }
  }
  return found;
}

void TensorRTCaches::clear(std::int64_t slots, std::int64_t rows) {
  const std::size_t line = static_cast<std::size_t>(rows) * kv_heads_;
  for (std::uint8_t* const cache : addresses_) {
    if (slots_first_) { // one block
      gpu_.clear(cache, line * slot_bytes_, line * slot_bytes_, static_cast<std::size_t>(slots));
    } else {
      gpu_.clear(cache, head_bytes_, static_cast<std::size_t>(slots) * slot_bytes_, line);
    }
  }
}

void TensorRTCaches::clear() { clear(slots_, rows_); }

// A run for each head, or for each slot.
TensorRTCaches::Runs TensorRTCaches::runs(std::int64_t row, std::int64_t rows, std::int64_t first,
                                          std::int64_t count) const {
  const auto slot = static_cast<std::size_t>(first);
  const auto slots = static_cast<std::size_t>(count);
  const auto place = static_cast<std::size_t>(row);
  if (slots_first_) {
    const std::size_t width = kv_heads_ * slot_bytes_;
    const std::size_t pitch = static_cast<std::size_t>(rows) * width;
    return {slot * pitch + place * width, pitch, width, slots};
  }
  return {place * kv_heads_ * head_bytes_ + slot * slot_bytes_, head_bytes_, slots * slot_bytes_, kv_heads_};
}

CacheContent TensorRTCaches::read(std::int64_t row, std::int64_t rows, std::int64_t first, std::int64_t count) {
  const Runs from = runs(row, rows, first, count);
  CacheContent content(addresses_.size(), std::vector<std::uint8_t>(from.count * from.width));
  for (std::size_t cache = 0; cache < addresses_.size(); cache++) {
    gpu_.download_rows(content[cache].data(), addresses_[cache] + from.offset, from.pitch, from.width, from.count);
  }
  gpu_.synchronize();
  return content;
}

void TensorRTCaches::write(std::int64_t row, std::int64_t rows, std::int64_t first, const CacheContent& content) {
  const auto count = static_cast<std::int64_t>(content.front().size() / (kv_heads_ * slot_bytes_));
  const Runs into = runs(row, rows, first, count);
  for (std::size_t cache = 0; cache < addresses_.size(); cache++) {
    gpu_.upload_rows(addresses_[cache] + into.offset, into.pitch, content[cache].data(), into.width, into.count);
  }
}

} // namespace arforge
