// The rules that make schedules. Each fills `steps` (and what it says) of a schedule whose grid is set; all throw
// Error (schedule) for numbers that do not fit the grid.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "schedules/rows.h"
#include "schedules/schedule.h"

namespace arforge {

// Throws unless the interval is -1 or more; the weight of guidance when `decoded` cells come before.
void check_interval(std::int64_t cfg_interval);
double weight_after(std::int64_t decoded, std::int64_t cfg_interval);

// Throws unless that many inputs can run ahead on drafts in the grid; sets `jacobi`, 0 being none.
void run_ahead(Schedule& schedule, std::int64_t jacobi);

// One cell a step, in raster order. Cells after `cfg_interval` + 1 (if not -1) use conditional logits alone. `jacobi`:
// inputs that a call runs ahead on drafts, with the same tokens.
void next_token(Schedule& schedule, std::int64_t cfg_interval, std::int64_t jacobi);

// ZipAR (arXiv 2412.04062), every row of which starts as soon as it may; sets `zero_slots`. So below.
void zipar(Schedule& schedule, const RowRules& rules);
std::unique_ptr<Rows> zipar_rows(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot);

// For models whose rows end in a token, the special one of index `row_end`, as Lumina-mGPT and Emu3: it is known
// beforehand, so it is fed without having been sampled, and starts the row below. Positions are those of the finished
// sequence, row ends counted, and an input sees what stands before it there and is written already.
//
// ZipAR as Lumina-mGPT's published loop has it: a row starts once the row above has `window` cells. What the user gives
// is one more: the end of the row above is counted, as the first of the new row's inputs. A window of the whole row is
// next-token order.
void zipar_row_ends(Schedule& schedule, const RowRules& rules);
void check_window_with_end(const Schedule& schedule, std::int64_t window); // as the user gives it
std::unique_ptr<Rows> ended_rows(std::int64_t height, std::int64_t width, const RowRules& rules, std::int64_t slot);

// Throws as those do: makes the table of either kind.
void row_table(Schedule& schedule, const RowRules& rules);

// Makes a table of an image's steps in which no row is withdrawn; the rules fit the grid.
void run_rows(Schedule& schedule, const RowRules& rules);

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
