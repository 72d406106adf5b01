#include <onnxruntime_c_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <utility>

#include "arforge_profile.hpp"
#include "backends/onnxruntime_session.h"
#include "bundle/bundle.h"
#include "device.h"
#include "profiling/sampling.h"
#include "profiling/traffic.h"
#include "request.h"
#include "text.h"

namespace arforge {
namespace {

using Figures = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

// One generation that counts; times in seconds.
struct Measured {
  Result result;
  double prompts = 0; // from the call to filled caches
  double first = 0;   // from the call to the end of the first step
};

double rank_of(std::vector<double> values, double rank) {
  std::sort(values.begin(), values.end());
  const double place = rank / 100 * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (place - std::floor(place)) * (values[above] - values[below]);
}

double median(std::vector<double> values) { return rank_of(std::move(values), 50); }

// Median and high percentiles, in milliseconds.
Figures milliseconds(const std::vector<double>& seconds) {
  return {
      {"median", 1000 * median(seconds)}, {"p95", 1000 * rank_of(seconds, 95)}, {"p99", 1000 * rank_of(seconds, 99)}};
}

// The number that `of` gives of each generation.
template <class Of>
std::vector<double> each(const std::vector<Measured>& measured, Of of) {
  std::vector<double> values;
  values.reserve(measured.size());
  for (const Measured& one : measured) {
    values.push_back(of(one));
  }
  return values;
}

double sum_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) {
    sum += value;
  }
  return sum;
}

template <class Value>
Figures or_null(const std::optional<Value>& value) {
  return value ? Figures(*value) : Figures();
}

Figures by_width(const std::vector<Measured>& measured, const std::vector<Call>& calls) {
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::size_t>> kinds;
  for (std::size_t index = 0; index < calls.size(); index++) {
    kinds[{calls[index].width, calls[index].queries}].push_back(index);
  }
  Figures list = Figures::array();
  for (const auto& [kind, places] : kinds) {
    std::vector<double> seconds;
    for (const Measured& one : measured) {
      for (const std::size_t place : places) {
        seconds.push_back(one.result.step_seconds[place]);
      }
    }
    Figures entry = {{"width", kind.first}};
    if (kind.second > 0) {
      entry["queries"] = kind.second;
    }
    entry["steps"] = places.size();
    entry.update(milliseconds(seconds));
    list.push_back(std::move(entry));
  }
  return list;
}

std::vector<double> step_milliseconds(const std::vector<Measured>& measured) {
  std::vector<double> medians;
  medians.reserve(measured.front().result.step_seconds.size());
  for (std::size_t step = 0; step < measured.front().result.step_seconds.size(); step++) {
    medians.push_back(1000 *
                      median(each(measured, [&](const Measured& one) { return one.result.step_seconds[step]; })));
  }
  return medians;
}

// How a schedule got on whose images go their own pace: the slowest of them, where there are several.
void add_pace(const std::vector<std::int64_t>& done, Figures& row) {
  std::int64_t single = 0;
  for (std::size_t index = 0; index < done.size(); index++) {
    single += done[index] - (index == 0 ? 0 : done[index - 1]) == 1 ? 1 : 0;
  }
  if (single < static_cast<std::int64_t>(done.size())) {
    row["steps_per_call"] = static_cast<double>(done.back()) / static_cast<double>(done.size());
    row["share_of_single_steps"] = static_cast<double>(single) / static_cast<double>(done.size());
  }
}

// The figures of a schedule, by the names of Python's `summary`.
Figures row_of(const std::string& schedule, const std::vector<Measured>& measured, const std::vector<Samples>& samples,
               const std::vector<Call>& calls, const Traffic& traffic, double bandwidth, std::int64_t rows) {
  const Result& last = measured.back().result;
  const auto count = static_cast<double>(calls.size());
  const auto images = static_cast<double>(last.images);
  const double seconds = median(each(measured, [](const Measured& one) { return sum_of(one.result.step_seconds); }));
  const double inside = median(each(measured, [](const Measured& one) { return sum_of(one.result.engine_seconds); }));
  const double pixels = median(each(measured, [](const Measured& one) { return one.result.image_seconds; }));
  const double prompts = median(each(measured, [](const Measured& one) { return one.prompts; }));
  const double whole = seconds + pixels;
  double cache = 0;
  double operations = 0;
  std::vector<double> all_steps;
  for (const Call& call : calls) {
    cache += traffic.cache_bytes(call, rows) + static_cast<double>(last.prompt_slots * traffic.slot);
    operations += traffic.operations(call, rows);
  }
  for (const Measured& one : measured) {
    all_steps.insert(all_steps.end(), one.result.step_seconds.begin(), one.result.step_seconds.end());
  }
  const double moved = count * static_cast<double>(traffic.weights) + cache;
  const std::optional<double> watts = mean_watts(samples);
  return {{"schedule", schedule},
          {"steps", calls.size()},
          {"measured_steps", calls.size()},
          {"repeats", measured.size()},
          {"batch", last.images},
          {"rows", rows},
          {"ms_to_filled_caches", 1000 * prompts},
          {"ms_to_first_token", 1000 * median(each(measured, [](const Measured& one) { return one.first; }))},
          {"prompt_slots", static_cast<double>(last.prompt_slots) / static_cast<double>(rows)},
          {"ms_per_step", milliseconds(all_steps)},
          {"ms_per_step_by_width", by_width(measured, calls)},
          {"ms_per_image", 1000 * whole / images},
          {"ms_per_image_tokens", 1000 * seconds / images},
          {"ms_per_image_decoder", last.pixels.empty() ? Figures() : Figures(1000 * pixels / images)},
          {"images_per_second", images / whole},
          {"engine_share", inside / seconds},
          {"runner_ms_per_step", 1000 * (seconds - inside) / count},
          {"weight_bytes_per_step", traffic.weights},
          {"cache_bytes_per_step", cache / count},
          {"bytes_per_second", moved / seconds},
          {"bandwidth_share", bandwidth > 0 ? Figures(moved / seconds / bandwidth) : Figures()},
          {"operations_per_second", operations / seconds},
          {"watts", or_null(watts)},
          {"joules_per_image", watts ? Figures(*watts * (whole + prompts) / images) : Figures()},
          {"sensors", told(samples)},
          {"step_ms", step_milliseconds(measured)},
          {"step_widths", last.step_widths},
          {"steps_saved", 0.0}, // against itself, as Python's first
          {"time_saved", 0.0}};
}

void check_settings(const Request& request, const ProfileSettings& settings, std::int64_t images) {
  if (settings.warm_ups < 0 || settings.repeats < 1) {
    throw Error(Code::request,
                text(settings.warm_ups, " warm-ups and ", settings.repeats, " repeats: use 0 or more, and 1 or more"));
  }
  if (!request.known.empty()) {
    throw Error(Code::request, "a profile measures whole images: leave out the tokens that stay, and a larger grid");
  }
  if (images > request.batch) {
    throw Error(Code::request, text("a profile measures one batch: ", images, " images are more than ", request.batch));
  }
}

} // namespace

Profile profile(Runner& runner, const Request& request, const ProfileSettings& settings) {
  const std::int64_t images = images_of(request);
  check_settings(request, settings, images);
  const Bundle& bundle = runner.bundle();
  const Facts& facts = runner.facts();
  Request asked = request;
  asked.schedule = request.schedule.empty() ? facts.schedules.front() : request.schedule;
  asked.receive = nullptr; // the result has them
  asked.preview = nullptr; // which would take its time from the steps
  std::vector<std::int64_t> done;
  Clock::time_point first;
  asked.single_calls = true;
  asked.progress = [&](std::int64_t now, std::int64_t steps) {
    first = done.empty() ? Clock::now() : first;
    done.push_back(now);
    return !request.progress || request.progress(now, steps);
  };
  const Sensors sensors(settings.sysfs, Nvml::open());
  std::vector<Measured> measured;
  std::vector<Samples> samples;
  double first_step = 0; // of all
  for (std::int64_t generation = 0; generation < settings.warm_ups + settings.repeats; generation++) {
    done.clear();
    Sampler sampler(sensors);
    const Clock::time_point start = Clock::now();
    Measured one{runner.generate(asked)};
    one.prompts = one.result.condition_seconds;
    one.first = std::chrono::duration<double>(first - start).count();
    first_step = generation == 0 ? one.first : first_step;
    if (generation >= settings.warm_ups) {
      samples.push_back(sampler.stop());
      measured.push_back(std::move(one));
    }
  }
  const std::optional<std::int64_t> peak = peak_memory(); // before the bandwidth is measured, which takes its own
  const bool cpu = facts.target == "onnxruntime" && facts.provider == "cpu"; // a GPU's memory is not measured here
  const double bandwidth = cpu ? streaming_bandwidth(facts.threads > 0 ? facts.threads : available_cores()) : 0;
  const Plan plan =
      make_plan(find_schedule(bundle, measured.back().result.schedule, {}), facts.widths, 0, 0, facts.exact_width);
  const std::vector<Call> calls = calls_of(plan, measured.back().result, done);
  const Sampling sampling = sampling_of(asked, bundle.sampler);
  const std::int64_t rows = guided_rows(images, sampling.guided(0, images));
  const Traffic traffic = traffic_of(bundle, facts.target, facts.precision);
  Figures row = row_of(asked.schedule, measured, samples, calls, traffic, bandwidth, rows);
  add_pace(done, row);
  Figures versions = {
      {"arforge", ARFORGE_VERSION}, {"compiler", __VERSION__}, {"onnxruntime", OrtGetApiBase()->GetVersionString()}};
  if (cpu && use_kernels()) {
    versions["kernels"] = ARFORGE_VERSION;
  }
  if (facts.target != "onnxruntime") {
    versions[facts.target] = library_of(bundle, facts.target, facts.precision);
  }
  const Figures figures = {{"bundle", bundle.root.filename().string()},
                           {"family", bundle.model.family},
                           {"variant", or_null(bundle.model.variant)},
                           {"device", cpu ? device_name() : sensors.gpu().value_or("a GPU that NVML does not name")},
                           {"versions", std::move(versions)},
                           {"target", facts.target},
                           {"precision", facts.precision},
                           {"threads", facts.threads > 0 ? Figures(facts.threads) : Figures()},
                           {"batch", images},
                           {"guidance", sampling.guidance.front()},
                           {"warm_ups", settings.warm_ups},
                           {"repeats", settings.repeats},
                           {"max_steps", nullptr},
                           {"streaming_bytes_per_second", cpu ? Figures(bandwidth) : Figures()},
                           {"load_seconds", settings.load_seconds},
                           {"first_step_seconds", settings.load_seconds + first_step},
                           {"peak_memory_bytes", or_null(peak)},
                           {"schedules", Figures::array({std::move(row)})}};
  return {figures.dump(1) + "\n", std::move(measured.back().result)};
}

} // namespace arforge
