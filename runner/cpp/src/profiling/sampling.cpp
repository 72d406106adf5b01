#include "profiling/sampling.h"

#include <algorithm>
#include <utility>

namespace arforge {
namespace {

using Figures = nlohmann::ordered_json;

// Mean, least and largest of each sensor of a kind.
Figures spread(const std::vector<const Reading*>& readings, std::map<std::string, double> Reading::* kind) {
  std::map<std::string, std::vector<double>> values;
  for (const Reading* reading : readings) {
    for (const auto& [name, value] : reading->*kind) {
      values[name].push_back(value);
    }
  }
  Figures figures = Figures::object();
  for (const auto& [name, some] : values) {
    double sum = 0;
    for (const double value : some) {
      sum += value;
    }
    const auto [least, largest] = std::minmax_element(some.begin(), some.end());
    figures[name] = {{"mean", sum / static_cast<double>(some.size())}, {"least", *least}, {"largest", *largest}};
  }
  return figures;
}

std::vector<const Reading*> all_readings(const std::vector<Samples>& generations) {
  std::vector<const Reading*> readings;
  for (const Samples& samples : generations) {
    for (const Reading& reading : samples.readings) {
      readings.push_back(&reading);
    }
  }
  return readings;
}

} // namespace

Sampler::Sampler(const Sensors& sensors, std::chrono::milliseconds period)
    : sensors_(sensors), period_(period), before_(sensors.read()), thread_([this] { look(); }) {}

Sampler::~Sampler() { end(); }

Samples Sampler::stop() {
  end();
  return std::move(samples_);
}

void Sampler::end() {
  if (thread_.joinable()) {
    {
      const std::lock_guard<std::mutex> held(lock_);
      over_ = true;
    }
    ended_.notify_all();
    thread_.join();
  }
}

void Sampler::look() {
  for (bool last = false; !last;) {
    {
      std::unique_lock<std::mutex> held(lock_);
      last = ended_.wait_for(held, period_, [this] { return over_; });
    }
    samples_.readings.push_back(sensors_.read()); // however short it was
  }
  for (const auto& [name, count] : samples_.readings.back().events) {
    const auto first = before_.events.find(name);
    samples_.events[name] = first == before_.events.end() ? 0 : count - first->second;
  }
}

Figures told(const std::vector<Samples>& generations) {
  const std::vector<const Reading*> readings = all_readings(generations);
  if (std::all_of(readings.begin(), readings.end(), [](const Reading* reading) { return reading->empty(); })) {
    return nullptr;
  }
  std::map<std::string, int> held;
  for (const Reading* reading : readings) {
    for (const std::string& name : reading->throttled) {
      held[name]++;
    }
  }
  std::map<std::string, std::int64_t> events;
  for (const Samples& samples : generations) {
    for (const auto& [name, count] : samples.events) {
      events[name] += count;
    }
  }
  Figures shares = Figures::object();
  for (const auto& [name, count] : held) {
    shares[name] = count / static_cast<double>(readings.size());
  }
  Figures counts = Figures::object();
  for (const auto& [name, count] : events) {
    counts[name] = count;
  }
  return {{"samples", readings.size()},
          {"milliwatts", spread(readings, &Reading::milliwatts)},
          {"megahertz", spread(readings, &Reading::megahertz)},
          {"celsius", spread(readings, &Reading::celsius)},
          {"throttled", std::move(shares)},
          {"events", std::move(counts)}};
}

std::optional<double> mean_watts(const std::vector<Samples>& generations) {
  double sum = 0;
  int count = 0;
  for (const Reading* reading : all_readings(generations)) {
    if (const std::optional<double> drawn = reading->watts()) {
      sum += *drawn;
      count++;
    }
  }
  return count == 0 ? std::nullopt : std::optional<double>(sum / count);
}

} // namespace arforge
