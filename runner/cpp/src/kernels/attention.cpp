#include "kernels/attention.h"

#include <algorithm>

#include "kernels/instructions.h"

namespace arforge::kernels {
namespace {

constexpr std::size_t QUERIES = 64; // at once, so that their scores stay in a core's cache

// A thread's memory, which grows and stays.
class Memory {
public:
  Bench bench(std::size_t rows, std::size_t wide, std::size_t slots) {
    const std::size_t needed = 2 * rows * wide + rows * slots + SIXTEEN * wide + filled_up(rows);
    if (needed > room_) {
      floats_ = aligned<float>(needed);
      room_ = needed;
    }
    float* const first = floats_.get();
    float* const attended = first + rows * wide;
    float* const turned = attended + rows * wide;
    float* const totals = turned + SIXTEEN * wide;
    return {rows, first, totals + filled_up(rows), turned, attended, totals};
  }

private:
  std::size_t room_ = 0;
  Aligned<float> floats_;
};

} // namespace

// The slots up to the last one that a query of a row sees.
std::size_t used_slots(const std::uint8_t* mask, std::size_t queries, std::size_t slots) noexcept {
  std::size_t used = 0;
  for (std::size_t query = 0; query < queries; query++) {
    for (std::size_t slot = slots; slot > used; slot--) {
      if (mask[query * slots + slot - 1] != 0) {
        used = slot;
      }
    }
  }
  return used;
}

void attend(void* given, std::size_t index) noexcept {
  const Step& step = *static_cast<Step*>(given);
  const Layer& layer = step.layer;
  const std::size_t row = index / layer.kv_heads, kv_head = index % layer.kv_heads;
  const auto of_row = [row](const Vectors& all, std::size_t first) {
    Vectors found = all;
    found.first += all.first == nullptr ? 0 : row * all.count * all.stride + first;
    found.positions += all.positions == nullptr ? 0 : row * all.count;
    return found;
  };
  const std::size_t group = layer.heads / layer.kv_heads, first = kv_head * layer.size;
  const std::size_t place = (row * layer.kv_heads + kv_head) * step.slots * layer.size * step.number_bytes;
  const bool codes = step.key_scales != nullptr;
  const Head head = {of_row(step.queries, group * first),
                     group,
                     layer.scale,
                     of_row(step.keys, first),
                     of_row(step.values, first),
                     step.turns,
                     step.key_cache + place,
                     step.value_cache + place,
                     codes ? step.key_scales + first : nullptr,
                     codes ? step.value_scales + first : nullptr,
                     layer.size,
                     step.write_index == nullptr ? 0 : static_cast<std::size_t>(step.write_index[row]),
                     step.used[row],
                     step.mask + row * step.queries.count * step.slots,
                     step.slots,
                     step.result + row * step.queries.count * layer.heads * layer.size + group * first,
                     layer.heads * layer.size};
  thread_local Memory memory;
  const std::size_t most = std::min(step.queries.count, std::max<std::size_t>(1, QUERIES / group)) * group;
  const Bench bench = memory.bench(std::max<std::size_t>(most, 1), filled_up(layer.size), filled_up(head.used));
  const InFloat& known = chosen()->in_float;
  codes ? known.attend_codes(head, bench) : known.attend_floats(head, bench);
}

} // namespace arforge::kernels
