// Triton's requests as arforge's, and results as Triton's responses.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "arforge.hpp"
#include "triton/core/tritonbackend.h"

// Throws std::runtime_error with Triton's own message, unless there is no error.
void check(TRITONSERVER_Error* error);

// Where nothing can be done about an error.
void ignore(TRITONSERVER_Error* error);

// What is Triton's error for that one.
TRITONSERVER_Error* error_of(const std::exception& error);

// A request of the server's, with the numbers that arforge's refers to.
struct TritonRequest {
  // Reads inputs: class (images, 1), ids (images, tokens) or features (images, tokens, width); seed (images, 1);
  // perhaps known (images, rows, columns). Settings are parameters. Throws arforge::Error (request) for others.
  explicit TritonRequest(TRITONBACKEND_Request* request);

  arforge::Request request;

private:
  std::vector<std::int64_t> ids_;
  std::vector<float> features_;
};

// Sends image, uint8 (images, height, width, 3), and tokens, int64 (images, cells). Throws if it cannot be begun;
// returns whether it was sent whole.
bool respond(TRITONBACKEND_Request* request, const arforge::Result& result);
void refuse(TRITONBACKEND_Request* request, const std::exception& error);
