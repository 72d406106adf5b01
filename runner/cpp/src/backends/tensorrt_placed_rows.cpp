#include "backends/tensorrt_placed_rows.h"

#include <algorithm>

namespace arforge {

PlacedRows::PlacedRows(Gpu& gpu, const TensorRTCaches& caches, const std::vector<Step>& steps)
    : gpu_(gpu), caches_(caches) {
  std::size_t largest = 0;
  for (const Step& step : steps) {
    const Planes planes = Planes::of(static_cast<std::size_t>(step.second) * caches.slot_bytes(),
                                     static_cast<std::size_t>(step.first) * caches.kv_heads());
    largest = std::max(largest, planes.bytes());
    steps_[step] = planes;
  }
  std::uint8_t* const place = gpu.allocate(largest * caches.names().size());
  for (auto& [step, planes] : steps_) {
    planes.place = place;
  }
}

Places PlacedRows::places(const Step& step) const {
  Places found;
  const Planes& given = steps_.at(step);
  for (std::size_t index = 0; index < caches_.names().size(); index++) {
    const std::string& name = caches_.names()[index];
    found[name] = caches_.planes().plane(index);
    found[update_name(name)] = given.plane(index);
  }
  return found;
}

void PlacedRows::put(const Step& step, const std::int64_t* write_index) {
  const Planes& planes = caches_.planes();
  const Planes& given = steps_.at(step);
  for (std::int64_t first = 0; first < step.first;) {
    std::int64_t last = first + 1;
    while (last < step.first && write_index[last] == write_index[first]) {
      last++;
    }
    const std::size_t line = static_cast<std::size_t>(first) * caches_.kv_heads();
    const std::size_t slot = static_cast<std::size_t>(write_index[first]) * caches_.slot_bytes();
    gpu_.copy_box({given.line, static_cast<std::size_t>(last - first) * caches_.kv_heads(), caches_.names().size()},
                  {planes.place + line * planes.line + slot, planes.line, planes.lines},
                  {given.place + line * given.line, given.line, given.lines});
    first = last;
  }
}

} // namespace arforge
