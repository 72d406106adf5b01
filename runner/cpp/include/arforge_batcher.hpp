// Decodes the requests of strangers together, on one thread of its own.
//
//   arforge::Runner runner = arforge::Runner::open("fashion.bundle");
//   arforge::Batcher batcher(runner, 8);
//   arforge::Answer answer = batcher.submit(request, 30.0); // from any thread
//   const arforge::Result& result = answer.get();
//
// All errors are arforge::Error.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "arforge.hpp"

namespace arforge {

// The answer to a request, in time. Copies are of the same one; letting go of them cancels nothing.
class ARFORGE_API Answer {
public:
  struct Job;
  explicit Answer(std::shared_ptr<Job> job);

  // Waits for it; the result lasts as long as a copy of this does. Throws what `Runner::generate` throws, Error
  // (deadline_exceeded) when the request's time is up, Error (cancelled), or what the request's own functions threw.
  // From then on these are not called.
  [[nodiscard]] const Result& get() const;

  // Whether it is there, a result or an error, after at most so many seconds; 0 asks without waiting.
  [[nodiscard]] bool wait(double seconds) const;

  // Works until the images are done, also while they are decoded. Returns whether that came in time.
  bool cancel();

private:
  std::shared_ptr<Job> job_;
};

// What a batch was, for figures.
struct Batched {
  std::int64_t images = 0;
  std::vector<double> waited; // (images) seconds from `submit` to the start
  bool done = false;          // false if it was cancelled, or failed
};

// Takes requests from any thread and decodes what fits together when the engine is free, in order of arrival. Images of
// one schedule are decoded together, whatever their sampler settings; each is what it would be alone. It never waits
// for more to come. The runner stays the caller's, and where it is, until the batcher is gone; it can be used beside.
class ARFORGE_API Batcher {
public:
  // `batch`: images decoded at a time; `waiting`: images that may wait. `observe` is called after each batch, on the
  // batcher's thread; what it throws is dropped. Throws Error (request) for a number below 1.
  explicit Batcher(Runner& runner, std::int64_t batch = 8, std::int64_t waiting = 64,
                   std::function<void(const Batched&)> observe = {});
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;
  ~Batcher(); // closes it. Not from the batcher's own thread

  // The request's images, in time; its numbers are copied. `timeout`: seconds from now after which the answer is an
  // error. Of the request, `batch` is the batcher's own matter, `progress` and `preview` are called on its thread,
  // where an image's steps count from the start of its batch, and `cancel` must last until there is an answer.
  //
  // Throws Error: queue_full at once if the images do not fit beside those that wait, request or schedule for what does
  // not fit the bundle, also `receive`, engine if the batcher is closed. What shows only later is the answer's error,
  // and no other request's.
  [[nodiscard]] Answer submit(const Request& request, std::optional<double> timeout = std::nullopt);

  // Images that wait.
  [[nodiscard]] std::int64_t waiting() const;

  // Takes no more requests, and ends: when all that were taken are answered, or cancelling those that are not begun.
  void close(bool drain = true);

private:
  struct Work;
  std::unique_ptr<Work> work_;
};

} // namespace arforge
