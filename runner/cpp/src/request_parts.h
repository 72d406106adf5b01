// A request as images of their own, and several of those as one request again: what batches of strangers are made of.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "arforge.hpp"
#include "bundle/bundle.h"

namespace arforge {

// A request with one value an image of everything and nothing left to defaults, which owns the numbers it refers to.
struct OwnRequest {
  // Equal for requests whose images can be decoded together: their schedule, what they are asked for by, the words that
  // they share, whether they have negative prompts, and the grid and cells that they know.
  using Kind =
      std::tuple<std::string, int, std::string, std::string, bool, std::int64_t, std::int64_t, std::vector<bool>>;

  // Throws Error (request, schedule) for what does not fit the bundle, as far as it shows without work.
  OwnRequest(const Request& given, const Bundle& bundle);
  OwnRequest(const OwnRequest&) = delete;
  OwnRequest& operator=(const OwnRequest&) = delete;

  Request request;
  Kind kind;

private:
  std::vector<Ids> kept(const std::vector<Ids>& given);

  std::vector<std::vector<std::int64_t>> ids_;
  std::vector<std::vector<float>> features_;
};

// One image of a request.
struct OneImage {
  const OwnRequest& from;
  std::int64_t index;
};

// One request for images of one kind, which are decoded at a time. It refers to the same numbers.
Request joined(const std::vector<OneImage>& images);

// The result of `count` of the images from `place` on.
Result part_of(const Result& result, std::int64_t place, std::int64_t count);

// Puts the result of further images behind those of a request, decoded in another batch.
void append(Result& result, const Result& more);

} // namespace arforge
