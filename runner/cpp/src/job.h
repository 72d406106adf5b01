// A request as a batcher proceeds with it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "arforge_batcher.hpp"
#include "request_parts.h"

namespace arforge {

// Whoever looks at it finds its time up. All but `deliver` may be called from any thread.
struct Answer::Job {
  using Clock = std::chrono::steady_clock;

  Job(const Request& request, const Bundle& bundle, std::optional<double> timeout);

  // Whether nobody waits for it any more, or it has its answer.
  bool gone();
  // Give it its answer, the first of which counts; return whether this was it.
  bool fail(std::exception_ptr error);
  bool fail(Code code, const std::string& message);
  bool wait(std::optional<double> seconds);
  // Around a call of one of its functions, which is left out where it is gone.
  bool enter();
  void leave();
  // Takes the result of some images from number `first` on; the last makes it whole.
  void deliver(std::int64_t first, Result part);
  const Result& result();

  const OwnRequest own;
  const std::int64_t images;
  const Clock::time_point submitted = Clock::now();

private:
  bool look();                  // with the lock held, as here and below
  [[nodiscard]] bool settled(); // whether it is answered, and calls nothing

  const std::optional<double> timeout_;
  std::mutex lock_;
  std::condition_variable answered_;
  bool done_ = false;
  std::thread::id inside_; // the thread that calls one of its functions
  std::exception_ptr error_;
  Result result_;
  std::int64_t delivered_ = 0;                         // images
  std::vector<std::pair<std::int64_t, Result>> parts_; // by the first image of each
};

} // namespace arforge
