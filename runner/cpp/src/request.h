// The arguments of a generation, checked.
#pragma once

#include <cstdint>
#include <vector>

#include "arforge.hpp"
#include "bundle/bundle.h"

namespace arforge {

// How a request samples, the bundle's defaults where it says nothing.
struct Sampling {
  double guidance, temperature;
  std::int64_t top_k;
  double top_p;
};

// Both throw Error (request) for a value out of range.
Sampling sampling_of(const Request& request, const Sampler& usual);
void check_request(const Request& request, const Model& model);

// Uniform numbers (images, cells) of the request's seeds.
std::vector<float> uniforms_of(const Request& request, std::int64_t cells);

} // namespace arforge
