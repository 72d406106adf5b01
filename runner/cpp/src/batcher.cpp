// Decodes the requests of strangers together.
#include "arforge_batcher.hpp"

#include <algorithm>
#include <deque>
#include <system_error>
#include <thread>

#include "job.h"
#include "text.h"

namespace arforge {
namespace {

using Job = Answer::Job;

constexpr std::int64_t MAX_WAITING = 1 << 20;

struct QueuedImage {
  std::shared_ptr<Job> job;
  std::int64_t index; // in its request
};

using Images = std::vector<QueuedImage>;

// A request's images in a batch, which lie together.
struct Share {
  Job& job;
  std::int64_t first;        // in its request
  std::int64_t place, count; // in the batch
};

std::int64_t checked(const char* name, std::int64_t value) {
  if (value < 1 || value > MAX_WAITING) {
    throw Error(Code::request, text(name, " ", value, " is out of range: use 1 to ", MAX_WAITING));
  }
  return value;
}

std::vector<Share> shares_of(const Images& images) {
  std::vector<Share> shares;
  for (std::size_t place = 0; place < images.size(); place++) {
    Job& job = *images[place].job;
    if (shares.empty() || &shares.back().job != &job) {
      shares.push_back({job, images[place].index, static_cast<std::int64_t>(place), 0});
    }
    shares.back().count++;
  }
  return shares;
}

// Calls a request's own function; what it throws is the request's own failure.
template <class Call>
void call(Job& job, Call own) {
  if (job.enter()) {
    try {
      own();
    } catch (...) {
      job.fail(std::current_exception());
    }
    job.leave();
  }
}

void tell_progress(const std::vector<Share>& shares, std::int64_t done, std::int64_t steps) {
  for (const Share& share : shares) {
    if (share.job.own.request.progress) {
      call(share.job, [&] {
        if (!share.job.own.request.progress(done, steps)) {
          share.job.fail(Code::cancelled, text("cancelled after ", done, " of ", steps, " steps"));
        }
      });
    }
  }
}

void show(const std::vector<Share>& shares, const Partial& partial) {
  for (const Share& share : shares) {
    if (share.job.own.request.preview) {
      call(share.job, [&] { share.job.own.request.preview(partial.part(share.place, share.count, share.first)); });
    }
  }
}

bool all_gone(const Images& images) {
  bool gone = true;
  for (const QueuedImage& image : images) {
    gone = image.job->gone() && gone; // each is looked at
  }
  return gone;
}

} // namespace

struct Batcher::Work {
  Work(Runner& used, std::int64_t batch_images, std::int64_t most_waiting, std::function<void(const Batched&)> observer)
      : runner(used), batch(checked("batch", batch_images)), most(checked("waiting", most_waiting)),
        observe(std::move(observer)) {}

  void loop();
  Images take();
  void decode(const Images& images);
  std::optional<Result> decoded(const Images& images, const std::vector<Share>& shares);
  void fail(const Images& images, const std::exception_ptr& error);
  void drop_gone(); // with the lock held

  Runner& runner;
  const std::int64_t batch, most;
  const std::function<void(const Batched&)> observe;
  std::mutex lock;
  std::condition_variable changed;
  std::deque<QueuedImage> queue;
  bool closed = false;
  std::mutex joining;
  std::thread thread;
  std::thread::id own; // of it, also when it has ended
};

void Batcher::Work::drop_gone() {
  queue.erase(std::remove_if(queue.begin(), queue.end(), [](const QueuedImage& image) { return image.job->gone(); }),
              queue.end());
}

void Batcher::Work::loop() {
  for (Images images = take(); !images.empty(); images = take()) {
    decode(images);
  }
}

// The next batch; none when the batcher is closed and nothing waits.
Images Batcher::Work::take() {
  std::unique_lock<std::mutex> held(lock);
  for (drop_gone(); queue.empty() && !closed; drop_gone()) {
    changed.wait(held);
  }
  Images taken;
  std::deque<QueuedImage> left;
  for (QueuedImage& image : queue) {
    const bool fits = static_cast<std::int64_t>(taken.size()) < batch &&
                      (taken.empty() || image.job->own.kind == taken.front().job->own.kind);
    if (fits) {
      taken.push_back(std::move(image));
    } else {
      left.push_back(std::move(image));
    }
  }
  queue = std::move(left);
  return taken;
}

// None if nobody waits any more.
std::optional<Result> Batcher::Work::decoded(const Images& images, const std::vector<Share>& shares) {
  std::vector<OneImage> parts;
  bool previewed = false;
  for (const QueuedImage& image : images) {
    parts.push_back({image.job->own, image.index});
    previewed = previewed || image.job->own.request.preview;
  }
  Request request = joined(parts);
  request.progress = [&](std::int64_t done, std::int64_t steps) {
    tell_progress(shares, done, steps);
    {
      const std::lock_guard<std::mutex> held(lock);
      drop_gone();
    }
    return !all_gone(images);
  };
  if (previewed) {
    request.preview = [&](const Partial& partial) { show(shares, partial); };
  }
  if (all_gone(images)) {
    return std::nullopt;
  }
  try {
    return runner.generate(request);
  } catch (const Error& error) {
    if (error.code() == Code::cancelled) {
      return std::nullopt;
    }
    throw;
  }
}

// Decodes and answers. Of images that fail together the halves are tried, until the one that fails is alone.
void Batcher::Work::decode(const Images& images) {
  const Job::Clock::time_point started = Job::Clock::now();
  std::optional<Result> result;
  std::vector<Share> shares;
  try {
    shares = shares_of(images);
    result = decoded(images, shares);
  } catch (...) { // the thread outlives whatever a request does
    fail(images, std::current_exception());
  }
  for (const Share& share : shares) {
    try {
      if (result) {
        share.job.deliver(share.first, part_of(*result, share.place, share.count));
      }
    } catch (...) {
      share.job.fail(std::current_exception());
    }
  }
  if (observe) {
    try {
      Batched batched{static_cast<std::int64_t>(images.size()), {}, result.has_value()};
      for (const QueuedImage& image : images) {
        batched.waited.push_back(std::chrono::duration<double>(started - image.job->submitted).count());
      }
      observe(batched);
    } catch (...) { // NOLINT(bugprone-empty-catch) as announced
    }
  }
}

void Batcher::Work::fail(const Images& images, const std::exception_ptr& error) {
  const auto other = [&](const QueuedImage& image) { return image.job != images.front().job; };
  if (std::none_of(images.begin(), images.end(), other)) {
    images.front().job->fail(error);
    return;
  }
  const auto middle = images.begin() + static_cast<std::ptrdiff_t>(images.size() / 2);
  for (Images half : {Images(images.begin(), middle), Images(middle, images.end())}) {
    half.erase(std::remove_if(half.begin(), half.end(), [](const QueuedImage& image) { return image.job->gone(); }),
               half.end());
    if (!half.empty()) {
      decode(half);
    }
  }
}

Batcher::Batcher(Runner& runner, std::int64_t batch, std::int64_t waiting, std::function<void(const Batched&)> observe)
    : work_(std::make_unique<Work>(runner, batch, waiting, std::move(observe))) {
  try {
    work_->thread = std::thread([work = work_.get()] { work->loop(); });
    work_->own = work_->thread.get_id();
  } catch (const std::system_error& error) {
    throw Error(Code::memory, text("no thread for a batcher: ", error.what()));
  }
}

Batcher::~Batcher() { close(); }

Answer Batcher::submit(const Request& request, std::optional<double> timeout) {
  Work& work = *work_;
  auto job = std::make_shared<Job>(request, work.runner.bundle(), timeout);
  if (job->images > work.most) {
    throw Error(Code::queue_full,
                text(job->images, " images are more than the ", work.most, " that may wait: ask for fewer"));
  }
  const std::lock_guard<std::mutex> held(work.lock);
  if (work.closed) {
    throw Error(Code::engine, "the batcher is closed: make another one");
  }
  work.drop_gone();
  const auto waiting = static_cast<std::int64_t>(work.queue.size());
  if (waiting + job->images > work.most) {
    throw Error(Code::queue_full,
                text(waiting, " images are waiting and ", work.most, " may: try again when some are done"));
  }
  for (std::int64_t index = 0; index < job->images; index++) {
    work.queue.push_back({job, index});
  }
  work.changed.notify_all();
  return Answer(std::move(job));
}

std::int64_t Batcher::waiting() const {
  const std::lock_guard<std::mutex> held(work_->lock);
  work_->drop_gone();
  return static_cast<std::int64_t>(work_->queue.size());
}

void Batcher::close(bool drain) {
  {
    const std::lock_guard<std::mutex> held(work_->lock);
    work_->closed = true;
    for (const QueuedImage& image : work_->queue) {
      if (!drain) {
        image.job->fail(Code::cancelled, "the batcher was closed before the images were begun");
      }
    }
    work_->changed.notify_all();
  }
  if (std::this_thread::get_id() != work_->own) {
    const std::lock_guard<std::mutex> one(work_->joining); // of several that close
    if (work_->thread.joinable()) {
      work_->thread.join();
    }
  }
}

} // namespace arforge
