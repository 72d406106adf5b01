// A batcher under many threads: requests of all schedules, settings and lengths, whose numbers are gone once they are
// submitted; some are cancelled, some late, some throw, some watch their images come to be.
//
//   strangers BUNDLE       how many answers were right, wrong, and something else, each as it should be
#include <arforge_batcher.hpp>

#include <array>
#include <atomic>
#include <iostream>
#include <thread>

#include "subjects.h"

namespace {

constexpr std::int64_t REQUESTS = 12, THREADS = 6;

// A request and what it refers to.
struct Owned {
  arforge::Request request;
  std::vector<std::vector<std::int64_t>> ids;
  std::vector<std::vector<float>> features;
};

std::unique_ptr<Owned> owned(const arforge::Facts& facts, std::int64_t index) {
  auto found = std::make_unique<Owned>();
  arforge::Request& request = found->request;
  request = request_for(facts, 1 + index % 3, index);
  request.schedule = facts.schedules[static_cast<std::size_t>(index) % facts.schedules.size()];
  request.guidance = 1.0 + static_cast<double>(index % 3);
  request.top_k = index % 2 == 0 ? 0 : 5;
  for (arforge::Ids& one : request.ids) {
    one.values = found->ids.emplace_back(one.values, one.values + one.length).data();
  }
  for (arforge::Features& one : request.features) {
    one.values = found->features.emplace_back(one.values, one.values + one.length * one.width).data();
  }
  return found;
}

struct Counts {
  std::atomic<int> right{0}, wrong{0}, cancelled{0}, late{0}, thrown{0}, previews{0};
};

// What an answer that is no result must be: what this thread asked for.
void count(Counts& counts, const arforge::Error& error, std::int64_t turn) {
  const bool cancelled = error.code() == arforge::Code::cancelled && turn % 4 == 1;
  const bool late = error.code() == arforge::Code::deadline_exceeded && turn % 4 == 2;
  (cancelled ? counts.cancelled : late ? counts.late : counts.wrong)++;
}

void ask(arforge::Batcher& batcher, const arforge::Facts& facts, const std::vector<arforge::Result>& expected,
         Counts& counts, std::int64_t thread) {
  for (std::int64_t turn = 0; turn < REQUESTS; turn++) {
    const std::int64_t index = (thread * 5 + turn) % REQUESTS;
    std::unique_ptr<Owned> asked = owned(facts, index);
    asked->request.preview = [&](const arforge::Partial& partial) {
      const std::vector<std::int64_t> tokens = partial.tokens();
      const std::vector<std::int64_t>& all = expected[static_cast<std::size_t>(index)].tokens;
      const std::int64_t cells = partial.rows * partial.columns;
      for (std::size_t place = 0; place < tokens.size(); place++) {
        const bool open = tokens[place] == -1;
        counts.wrong += open || tokens[place] == all[static_cast<std::size_t>(partial.first * cells) + place] ? 0 : 1;
      }
      if (facts.downsampling > 0 && partial.done % 3 == 0) {
        counts.previews += partial.pixels(arforge::Undecided::grey).pixels.empty() ? 0 : 1;
      }
      if (turn % 8 == 7) {
        throw turn;
      }
    };
    try {
      arforge::Answer answer = batcher.submit(asked->request, turn % 4 == 2 ? std::optional(0.005) : std::nullopt);
      asked.reset();
      if (turn % 4 == 1) {
        (void)answer.wait(0.002 * static_cast<double>(thread));
        answer.cancel();
      }
      const arforge::Result& found = answer.get();
      const arforge::Result& one = expected[static_cast<std::size_t>(index)];
      const bool same = found.tokens == one.tokens && found.pixels == one.pixels && found.passes == one.passes &&
                        found.steps == one.steps && turn % 8 != 7;
      (same ? counts.right : counts.wrong)++;
    } catch (const arforge::Error& error) {
      count(counts, error, turn);
    } catch (std::int64_t thrown) {
      (thrown == turn ? counts.thrown : counts.wrong)++;
    }
  }
}

} // namespace

int main(int words_count, char** words) {
  if (words_count != 2) {
    return 2;
  }
  arforge::Options options;
  options.threads = 1;
  arforge::Runner runner = arforge::Runner::open(words[1], options);
  const arforge::Facts& facts = runner.facts();
  std::vector<arforge::Result> expected;
  for (std::int64_t index = 0; index < REQUESTS; index++) {
    expected.push_back(runner.generate(owned(facts, index)->request));
  }
  Counts counts;
  std::int64_t images = 0;
  {
    arforge::Batcher batcher(runner, 4, 64, [&](const arforge::Batched& batch) { images += batch.images; });
    std::array<std::thread, THREADS> threads;
    for (std::size_t thread = 0; thread < threads.size(); thread++) {
      threads[thread] =
          std::thread([&, thread] { ask(batcher, facts, expected, counts, static_cast<std::int64_t>(thread)); });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    std::vector<arforge::Answer> left;
    for (std::int64_t index = 0; index < REQUESTS; index++) {
      left.push_back(batcher.submit(owned(facts, index)->request));
    }
    std::thread other([&] { batcher.close(false); }); // of two that close
    batcher.close(false);
    other.join();
    for (const arforge::Answer& answer : left) {
      counts.wrong += answer.wait(0) ? 0 : 1;
    }
  }
  std::cout << counts.right << " right, " << counts.cancelled << " cancelled, " << counts.late << " late, "
            << counts.thrown << " thrown, " << counts.wrong << " wrong\n";
  return counts.wrong == 0 && images > 0 && (facts.downsampling == 0 || counts.previews > 0) ? 0 : 1;
}
