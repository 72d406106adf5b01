// The arguments of a generation, checked.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "arforge.hpp"
#include "bundle/facts.h"
#include "step_graph.h"

namespace arforge {

// How a request samples, the bundle's defaults where it says nothing: one value an image.
struct Sampling {
  std::vector<double> guidance, temperature;
  std::vector<std::int64_t> top_k;
  std::vector<double> top_p;

  // Whether some of the images from `first` on need their unconditional row.
  [[nodiscard]] bool guided(std::int64_t first, std::int64_t images) const;
};

// How many a request asks for.
std::int64_t images_of(const Request& request);

// All throw Error (request): for a value out of range, for lists of another length than the images'.
void check_request(const Request& request);
void check_classes(const std::vector<std::int64_t>& classes, const ModelFacts& model);

// `slots`: ids of a prompt at most. `where`: what messages begin with.
void check_ids(const std::vector<Ids>& ids, std::int64_t slots, const char* where);

Sampling sampling_of(const Request& request, const SamplerDefaults& usual);

// Throws Error (request) unless pixels (images, height, width, 3) are those of whole tokens.
void check_images(const std::optional<ImageTokenizerFacts>& tokenizer, std::int64_t images, std::int64_t height,
                  std::int64_t width);

// Writes the settings of the images from `first` on, guidance excepted. Allocates nothing.
void fill_settings(const Sampling& sampling, std::int64_t first, std::int64_t images, StepBuffers& buffers);

// Room for what a result tells of so many calls, and the shape of one of them.
void reserve_calls(Result& result, std::size_t calls);
void note_call(Result& result, const Shape& shape);

// A seed an image: the request's, or their places in it.
std::vector<std::uint64_t> seeds_of(const Request& request);

} // namespace arforge
