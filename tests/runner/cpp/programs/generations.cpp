// Many generations from one program.
//
//   generations growth BUNDLE COUNT          resident bytes, the medians of their second and last quarter
//   generations threads BUNDLE               two runners in two threads, and two threads on one runner
//   generations open FILE                    each line "BUNDLE<tab>SCHEDULE": its error code and message
//
// All of them on ONNX Runtime, or on the engine that is named behind: TARGET PRECISION.
#include <arforge.hpp>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <thread>
#include <unistd.h>

#include "subjects.h"

namespace {

arforge::Options options; // of every runner

arforge::Runner opened(const std::string& bundle) { return arforge::Runner::open(bundle, options); }

arforge::Request request_of(const arforge::Runner& runner, const std::string& schedule, std::int64_t images,
                            std::int64_t index) {
  arforge::Request request = request_for(runner.facts(), images, index);
  request.schedule = schedule;
  return request;
}

long resident_bytes() {
  long pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

// One reading may stand a megabyte off: allocators give pages back when they like.
long median(std::vector<long> readings, std::size_t first, std::size_t last) {
  readings = {readings.begin() + static_cast<std::ptrdiff_t>(first),
              readings.begin() + static_cast<std::ptrdiff_t>(last)};
  std::sort(readings.begin(), readings.end());
  return readings.at(readings.size() / 2);
}

int growth(const std::string& bundle, std::int64_t count) {
  arforge::Runner runner = opened(bundle);
  const std::vector<std::string>& schedules = runner.facts().schedules;
  std::vector<long> readings;
  for (std::int64_t index = 0; index < count; index++) {
    const std::string& schedule = schedules[static_cast<std::size_t>(index) % schedules.size()];
    const arforge::Result result = runner.generate(request_of(runner, schedule, 1 + index % 3, index));
    if (result.tokens.empty()) {
      return 1;
    }
    readings.push_back(resident_bytes());
  }
  const std::size_t quarter = readings.size() / 4;
  std::cout << median(readings, quarter, 2 * quarter + 1) << '\n'
            << median(readings, readings.size() - quarter - 1, readings.size()) << '\n';
  return 0;
}

int threads(const std::string& bundle) {
  arforge::Runner runner = opened(bundle);
  arforge::Runner other = opened(bundle);
  const std::vector<std::string> schedules = runner.facts().schedules;
  std::vector<std::vector<std::int64_t>> expected;
  for (std::size_t index = 0; index < 12; index++) {
    const auto images = static_cast<std::int64_t>(1 + index % 3);
    expected.push_back(
        runner
            .generate(request_of(runner, schedules[index % schedules.size()], images, static_cast<std::int64_t>(index)))
            .tokens);
  }
  std::atomic<int> wrong{0};
  const auto work = [&](arforge::Runner& mine, std::size_t first) {
    for (std::size_t turn = 0; turn < expected.size(); turn++) {
      const std::size_t index = (first + turn) % expected.size();
      const auto images = static_cast<std::int64_t>(1 + index % 3);
      const auto request =
          request_of(mine, schedules[index % schedules.size()], images, static_cast<std::int64_t>(index));
      wrong += mine.generate(request).tokens == expected[index] ? 0 : 1;
    }
  };
  std::thread a(work, std::ref(runner), 0);
  std::thread b(work, std::ref(other), 3);
  std::thread c(work, std::ref(runner), 7);
  a.join();
  b.join();
  c.join();
  std::cout << 3 * expected.size() << " generations, " << wrong << " wrong\n";
  return wrong;
}

int open_each(const std::string& path) {
  std::ifstream lines(path);
  for (std::string bundle, schedule; std::getline(lines, bundle, '\t') && std::getline(lines, schedule);) {
    try {
      arforge::Runner runner = opened(bundle);
      (void)runner.generate(request_of(runner, schedule, 1, 0));
      std::cout << "0\t\n";
    } catch (const arforge::Error& error) {
      std::string message = error.what();
      std::replace(message.begin(), message.end(), '\n', ' ');
      std::cout << static_cast<int>(error.code()) << '\t' << message << '\n';
    }
  }
  return 0;
}

} // namespace

int main(int count, char** words) {
  const std::string mode = count > 2 ? words[1] : "";
  const int used = mode == "growth" ? 4 : 3;
  options.threads = 1;
  options.target = count == used + 2 ? words[used] : options.target;
  options.precision = count == used + 2 ? words[used + 1] : "";
  return mode == "growth"    ? growth(words[2], std::stoll(words[3]))
         : mode == "threads" ? threads(words[2])
         : mode == "open"    ? open_each(words[2])
                             : 2;
}
