// Looks at the sensors while a generation runs, on a thread of its own, and says what they told.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "profiling/sensors.h"

namespace arforge {

// What was seen while one generation ran.
struct Samples {
  std::vector<Reading> readings;
  std::map<std::string, std::int64_t> events; // counted in between
};

// From its making until `stop` it looks at the sensors every so often, and once at the end.
class Sampler {
public:
  explicit Sampler(const Sensors& sensors, std::chrono::milliseconds period = std::chrono::milliseconds(100));
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;
  ~Sampler();

  Samples stop();

private:
  void look();
  void end();

  const Sensors& sensors_;
  const std::chrono::milliseconds period_;
  const Reading before_;
  Samples samples_;
  std::mutex lock_;
  std::condition_variable ended_;
  bool over_ = false;
  std::thread thread_; // the last member: it uses the others
};

// All that the sensors told in some generations, as a profile's JSON has it; null where there are none.
nlohmann::ordered_json told(const std::vector<Samples>& generations);

// Over all looks; nothing where nothing tells.
std::optional<double> mean_watts(const std::vector<Samples>& generations);

} // namespace arforge
