// The rules that make schedules. Each fills `steps` (and what it says) of a schedule whose grid is set; all throw
// Error (schedule) for numbers that do not fit the grid.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schedules/schedule.h"

namespace arforge {

// One cell a step, in raster order. Cells after `cfg_interval` + 1 (if not -1) use conditional logits alone.
void next_token(Schedule& schedule, std::int64_t cfg_interval);

struct ZiparOptions {
  std::int64_t window; // a row starts once the one above has that many tokens
  bool windowed;       // so does row 1; otherwise it waits for the whole of row 0, as published
  bool nearest;        // a row starts from the nearest decided cell; otherwise as published
  bool masked;         // cells that are not written yet are hidden; otherwise they are zero slots, as published
  std::int64_t cfg_interval;
};

// ZipAR (arXiv 2412.04062); sets `zero_slots`.
void zipar(Schedule& schedule, const ZiparOptions& options);

// PAR (arXiv 2412.15119): one cell of every region a step.
void par(Schedule& schedule, std::int64_t regions);

struct ArpgOptions {
  std::int64_t steps;
  bool cosine;         // ratio of cells left after a step; otherwise arccos
  bool constant;       // guidance; otherwise it grows with the share of cells known
  std::uint64_t order; // seed of the order
  bool causal;         // the cells of a group see those before them only
};

// ARPG (arXiv 2503.10568): cells in a random order, in groups that grow, from those of `schedule.kept`; sets
// `queries`.
void arpg(Schedule& schedule, const ArpgOptions& options);

} // namespace arforge
