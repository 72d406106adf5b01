// The rules that make schedules. Each fills `steps` (and what it says) of a schedule whose grid is set; all throw
// Error (schedule) for numbers that do not fit the grid.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schedules/schedule.h"

namespace arforge {

// Throws unless the interval is -1 or more; the weight of guidance when `decoded` cells come before.
void check_interval(std::int64_t cfg_interval);
double weight_after(std::int64_t decoded, std::int64_t cfg_interval);

// Throws unless that many inputs can run ahead on drafts in the grid; sets `jacobi`, 0 being none.
void run_ahead(Schedule& schedule, std::int64_t jacobi);

// One cell a step, in raster order. Cells after `cfg_interval` + 1 (if not -1) use conditional logits alone. `jacobi`:
// inputs that a call runs ahead on drafts, with the same tokens; so below.
void next_token(Schedule& schedule, std::int64_t cfg_interval, std::int64_t jacobi);

struct ZiparOptions {
  std::int64_t window; // a row starts once the one above has that many tokens
  bool windowed;       // so does row 1; otherwise it waits for the whole of row 0, as published
  bool nearest;        // a row starts from the nearest decided cell; otherwise as published
  bool masked;         // cells that are not written yet are hidden; otherwise they are zero slots, as published
  std::int64_t cfg_interval, jacobi;
};

// ZipAR (arXiv 2412.04062); sets `zero_slots`.
void zipar(Schedule& schedule, const ZiparOptions& options);

// Both for models whose rows end in a token, the special one of index `row_end`, as Lumina-mGPT and Emu3: it is known
// beforehand, so it is fed without having been sampled, and starts the row below. Positions are those of the finished
// sequence, row ends counted, and an input sees what stands before it there and is written already.
//
// ZipAR as Lumina-mGPT's published loop has it: a row starts once the row above has `window` - 1 cells. The end of the
// row above is counted in the window, as the first of the new row's inputs. A window of width + 1 is next-token order.
void next_token_row_ends(Schedule& schedule, std::int64_t row_end, std::int64_t cfg_interval, std::int64_t jacobi);
void zipar_row_ends(Schedule& schedule, std::int64_t row_end, std::int64_t window, std::int64_t cfg_interval,
                    std::int64_t jacobi);

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
