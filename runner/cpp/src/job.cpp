#include "job.h"

#include <algorithm>

#include "request.h"
#include "text.h"

namespace arforge {
namespace {

constexpr double MAX_TIMEOUT = 1e9; // seconds, as far as a clock goes

Answer::Job::Clock::duration clock_time(double seconds) {
  return std::chrono::duration_cast<Answer::Job::Clock::duration>(
      std::chrono::duration<double>(seconds > 0 ? std::min(seconds, MAX_TIMEOUT) : 0));
}

std::optional<double> checked(std::optional<double> timeout) {
  if (timeout && !(*timeout > 0 && *timeout <= MAX_TIMEOUT)) {
    throw Error(Code::request, text("timeout ", *timeout, " is out of range: use seconds above 0"));
  }
  return timeout;
}

} // namespace

Answer::Job::Job(const Request& request, const Bundle& bundle, std::optional<double> timeout)
    : own(request, bundle), images(images_of(own.request)), timeout_(checked(timeout)) {}

bool Answer::Job::look() {
  if (done_) {
    return true;
  }
  if (timeout_ && Clock::now() - submitted >= clock_time(*timeout_)) {
    error_ = std::make_exception_ptr(Error(Code::deadline_exceeded, text("the images were not done after ", *timeout_,
                                                                         " s: ask for fewer, or wait longer")));
  } else if (own.request.cancel != nullptr && own.request.cancel->load()) {
    error_ = std::make_exception_ptr(Error(Code::cancelled, "the request was cancelled"));
  }
  done_ = error_ != nullptr;
  if (done_) {
    answered_.notify_all();
  }
  return done_;
}

bool Answer::Job::gone() {
  const std::lock_guard<std::mutex> held(lock_);
  return look();
}

bool Answer::Job::fail(std::exception_ptr error) {
  const std::lock_guard<std::mutex> held(lock_);
  if (look()) {
    return false;
  }
  error_ = std::move(error);
  done_ = true;
  answered_.notify_all();
  return true;
}

bool Answer::Job::fail(Code code, const std::string& message) {
  return fail(std::make_exception_ptr(Error(code, message)));
}

bool Answer::Job::wait(std::optional<double> seconds) {
  std::unique_lock<std::mutex> held(lock_);
  const Clock::time_point most = Clock::now() + clock_time(seconds.value_or(MAX_TIMEOUT));
  const Clock::time_point late = timeout_ ? std::min(most, submitted + clock_time(*timeout_)) : most;
  while (!settled() && Clock::now() < most) {
    answered_.wait_until(held, done_ ? most : late);
  }
  return settled();
}

bool Answer::Job::settled() {
  return look() && (inside_ == std::thread::id() || inside_ == std::this_thread::get_id());
}

bool Answer::Job::enter() {
  const std::lock_guard<std::mutex> held(lock_);
  const bool there = !look();
  inside_ = there ? std::this_thread::get_id() : std::thread::id();
  return there;
}

void Answer::Job::leave() {
  const std::lock_guard<std::mutex> held(lock_);
  inside_ = {};
  answered_.notify_all();
}

void Answer::Job::deliver(std::int64_t first, Result part) {
  delivered_ += part.images;
  parts_.emplace_back(first, std::move(part));
  if (delivered_ < images) {
    return;
  }
  std::sort(parts_.begin(), parts_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  Result whole = std::move(parts_.front().second);
  std::for_each(parts_.begin() + 1, parts_.end(), [&](const auto& further) { append(whole, further.second); });
  parts_.clear();
  const std::lock_guard<std::mutex> held(lock_);
  if (!look()) {
    result_ = std::move(whole);
    done_ = true;
    answered_.notify_all();
  }
}

const Result& Answer::Job::result() {
  while (!wait(std::nullopt)) {
  }
  if (error_ != nullptr) { // it stays from here on
    std::rethrow_exception(error_);
  }
  return result_;
}

Answer::Answer(std::shared_ptr<Job> job) : job_(std::move(job)) {}

const Result& Answer::get() const { return job_->result(); }

bool Answer::wait(double seconds) const { return job_->wait(seconds); }

bool Answer::cancel() { return job_->fail(Code::cancelled, "the request was cancelled"); }

} // namespace arforge
