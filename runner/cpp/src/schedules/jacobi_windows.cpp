#include "schedules/jacobi_windows.h"

#include <optional>

#include "schedules/specification.h"

namespace arforge {
namespace {

constexpr double PAYS = 0.97; // of next-token's time: what two measurements of the same thing differ by is no gain

} // namespace

std::int64_t best_window(const std::vector<MeasuredWindow>& measured, std::int64_t images) {
  std::optional<MeasuredWindow> best;
  for (const MeasuredWindow& one : measured) {
    const bool nearer = !best || one.images < best->images;
    if (one.images >= images && (nearer || (one.images == best->images && one.time < best->time))) {
      best = one;
    }
  }
  return best && best->time < PAYS ? best->inputs : 1;
}

std::string settled(const std::string& schedule, const std::vector<MeasuredWindow>& measured, std::int64_t images) {
  Specification specification = parse_specification(schedule);
  if (!leaves_window_open(specification)) {
    return schedule;
  }
  specification.options.erase(JACOBI);
  if (const std::int64_t inputs = best_window(measured, images); inputs > 1) {
    specification.options[JACOBI] = std::to_string(inputs);
  }
  return canonical_text(specification);
}

} // namespace arforge
