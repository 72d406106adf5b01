// How far next-token decoding runs ahead on drafts where a request leaves that to the engine (`jacobi:auto`).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace arforge {

// How many images were decoded together with how many inputs a call, and the time to next-token decoding's.
struct MeasuredWindow {
  std::int64_t images, inputs;
  double time;
};

// Inputs of a call that are the quickest for a batch, 1 where none pays or so large a batch was not measured. What was
// measured with the least number of images that is not smaller counts: the more rows, the less running ahead pays.
std::int64_t best_window(const std::vector<MeasuredWindow>& measured, std::int64_t images);

// The specification that a batch is decoded by: as it is given, but for how far it runs ahead. Throws Error (schedule)
// as `parse_specification`.
std::string settled(const std::string& schedule, const std::vector<MeasuredWindow>& measured, std::int64_t images);

} // namespace arforge
