#include "backends/tensorrt_caches.h"

namespace arforge {

TensorRTCaches::TensorRTCaches(Gpu& gpu, const ModelFacts& model, Type type, std::int64_t slots, std::int64_t rows,
                               bool together)
    : gpu_(gpu), kv_heads_(static_cast<std::size_t>(model.kv_heads)), slots_(slots), rows_(rows),
      slot_bytes_(entries_of({model.head_size}) * bytes_of(type)),
      head_bytes_(entries_of({slots, static_cast<std::int64_t>(slot_bytes_)})), names_(cache_names(model.caches)) {
  const std::size_t size = entries_of({rows, model.kv_heads, static_cast<std::int64_t>(head_bytes_)});
  if (together) {
    planes_ = Planes::of(head_bytes_, static_cast<std::size_t>(rows) * kv_heads_);
    planes_.place = gpu.allocate(planes_.bytes() * names_.size());
  }
  for (std::size_t cache = 0; cache < names_.size(); cache++) {
    addresses_.push_back(together ? planes_.plane(cache) : gpu.allocate(size));
  }
  clear(); // NaN in a slot that no mask lets through would spoil its row all the same
}

Places TensorRTCaches::places() const {
  Places found;
  for (std::size_t cache = 0; cache < names_.size(); cache++) {
    found[names_[cache]] = found[written_name(names_[cache])] = addresses_[cache];
  }
  return found;
}

void TensorRTCaches::clear(std::int64_t slots, std::int64_t rows) {
  for (std::uint8_t* const cache : addresses_) {
    gpu_.clear(cache, head_bytes_, static_cast<std::size_t>(slots) * slot_bytes_,
               static_cast<std::size_t>(rows) * kv_heads_);
  }
}

void TensorRTCaches::clear() { clear(slots_, rows_); }

// Of the row's first head.
std::uint8_t* TensorRTCaches::address(std::size_t cache, std::int64_t row, std::int64_t slot) const {
  return addresses_[cache] + static_cast<std::size_t>(row) * kv_heads_ * head_bytes_ +
         static_cast<std::size_t>(slot) * slot_bytes_;
}

CacheContent TensorRTCaches::read(std::int64_t row, std::int64_t first, std::int64_t count) {
  const std::size_t width = static_cast<std::size_t>(count) * slot_bytes_;
  CacheContent content(addresses_.size(), std::vector<std::uint8_t>(kv_heads_ * width));
  for (std::size_t cache = 0; cache < addresses_.size(); cache++) {
    gpu_.download_rows(content[cache].data(), address(cache, row, first), head_bytes_, width, kv_heads_);
  }
  gpu_.synchronize();
  return content;
}

void TensorRTCaches::write(std::int64_t row, std::int64_t first, const CacheContent& content) {
  for (std::size_t cache = 0; cache < addresses_.size(); cache++) {
    gpu_.upload_rows(address(cache, row, first), head_bytes_, content[cache].data(), content[cache].size() / kv_heads_,
                     kv_heads_);
  }
}

} // namespace arforge
