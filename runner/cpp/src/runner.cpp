// The runner: a loop that executes a schedule against an engine.
#include <algorithm>
#include <chrono>
#include <list>
#include <mutex>

#include "arforge.hpp"
#include "backends/onnxruntime_engine.h"
#include "bundle/bundle.h"
#include "canvas.h"
#include "plan.h"
#include "request.h"
#include "schedules/specification.h"
#include "state.h"
#include "text.h"

namespace arforge {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t PLANS = 8;             // kept for later requests
constexpr std::int64_t ENCODED_AT_ONCE = 32; // images

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One request as it proceeds.
struct Job {
  const Request& request;
  Sampling sampling;
  std::vector<float> uniforms; // (images, canvas cells)
  std::int64_t done, steps;    // of the whole request
  Result& result;
};

// The images that are decoded together.
struct Part {
  std::int64_t first, images;
};

// Runs `work`, with what libraries throw as Error; what the caller's own functions throw passes through.
template <class Work>
auto guarded(Work work) {
  try {
    return work();
  } catch (const Ort::Exception& error) {
    throw Error(Code::engine, text("ONNX Runtime failed: ", error.what()));
  } catch (const std::bad_alloc&) {
    throw Error(Code::memory, "no memory for this request: use a smaller batch");
  } catch (const std::length_error&) {
    throw Error(Code::memory, "no memory for this request: use a smaller batch");
  } catch (const std::filesystem::filesystem_error& error) {
    throw Error(Code::missing_file, error.what());
  }
}

} // namespace

struct Runner::Parts {
  struct NamedPlan {
    std::string schedule;
    std::vector<std::int32_t> kept;
    Plan plan;
  };

  Parts(const std::filesystem::path& root, const Options& options);

  const Plan& plan(const std::string& schedule, const std::vector<std::int32_t>& kept);
  void decode(const Plan& plan, const Window& window, const Part& part, Job& job, Canvas& canvas);
  Result generate(const Request& request);
  std::vector<std::int64_t> encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                   std::int64_t width);

  Bundle bundle;
  std::unique_ptr<Engine> engine;
  Facts facts;
  std::list<NamedPlan> plans; // the latest used first
  std::mutex turn;
};

Runner::Parts::Parts(const std::filesystem::path& root, const Options& options) : bundle(open_bundle(root)) {
  if (options.threads < 0) {
    throw Error(Code::engine, text(options.threads, " threads: use at least 1, or 0 for one a core"));
  }
  if (options.check_hashes) {
    check_hashes(bundle);
  }
  engine = std::make_unique<Engine>(bundle, find_engine(bundle, options.precision), options);
  const Model& model = bundle.model;
  facts = {model.family,
           model.classes,
           model.rows,
           model.columns,
           model.vocabulary,
           bundle.tokenizer ? bundle.tokenizer->downsampling : 0,
           {},
           bundle.sampler.guidance,
           bundle.sampler.temperature,
           bundle.sampler.top_p,
           bundle.sampler.top_k};
  for (const StoredSchedule& schedule : bundle.schedules) {
    facts.schedules.push_back(schedule.specification);
  }
}

const Plan& Runner::Parts::plan(const std::string& schedule, const std::vector<std::int32_t>& kept) {
  const auto same = [&](const NamedPlan& named) { return named.schedule == schedule && named.kept == kept; };
  const auto found = std::find_if(plans.begin(), plans.end(), same);
  if (found != plans.end()) {
    plans.splice(plans.begin(), plans, found);
  } else {
    plans.push_front(
        {schedule, kept, make_plan(find_schedule(bundle, schedule, kept), engine->widths(), engine->growth())});
  }
  return plans.front().plan;
}

// Decodes one window of the canvas for the images of one part.
void Runner::Parts::decode(const Plan& plan, const Window& window, const Part& part, Job& job, Canvas& canvas) {
  const Request& request = job.request;
  const std::int64_t images = part.images;
  const Extent extent{images, job.sampling.guidance != 1 ? 2 * images : images, plan.slots};
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(images * plan.cells)); // (images, cells) of the window
  const auto place = [&](std::int64_t image, std::int64_t cell) {
    return static_cast<std::size_t>((part.first + image) * canvas.cells() +
                                    window.cells[static_cast<std::size_t>(cell)]);
  };
  for (std::int64_t image = 0; image < images; image++) {
    for (std::int64_t cell = 0; cell < plan.cells; cell++) {
      tokens[static_cast<std::size_t>(image * plan.cells + cell)] = canvas.tokens[place(image, cell)];
    }
  }
  engine->prepare(extent, plan);
  State state = start_of(plan, bundle.model, request.classes.data() + part.first, extent, tokens);
  engine->scalars.temperature = static_cast<float>(job.sampling.temperature);
  engine->scalars.top_k = job.sampling.top_k;
  engine->scalars.top_p = static_cast<float>(job.sampling.top_p);
  for (const PlannedStep& step : plan.steps) {
    if (request.cancel != nullptr && request.cancel->load()) {
      throw Error(Code::cancelled, text("cancelled after ", job.done, " of ", job.steps, " steps"));
    }
    const Clock::time_point begin = Clock::now();
    StepBuffers& buffers = engine->buffers(step.shape);
    fill(step, plan.zero_slots, state, buffers);
    const auto outputs = static_cast<std::int64_t>(buffers.uniforms.size()) / images;
    for (std::int64_t image = 0; image < images; image++) {
      for (std::size_t target = 0; target < step.target_cells.size(); target++) {
        buffers.uniforms[static_cast<std::size_t>(image * outputs + step.target_rows[target])] =
            job.uniforms[place(image, step.target_cells[target])];
      }
    }
    engine->scalars.guidance = static_cast<float>(1 + (job.sampling.guidance - 1) * step.guidance);
    const Clock::time_point start = Clock::now();
    engine->run(step.shape, buffers, &step == &plan.steps.front());
    job.result.engine_seconds.push_back(seconds_since(start));
    if (const std::int64_t spoilt = spoilt_image(step, buffers, bundle.model, images); spoilt >= 0) {
      engine->clear();
      throw Error(Code::numerics, text("step ", &step - plan.steps.data(), " of ", plan.steps.size(), ", image ",
                                       part.first + spoilt, ": the logits are NaN or infinite, or tokens outside 0..",
                                       bundle.model.vocabulary - 1, "; check the weights: arforge verify"));
    }
    store(step, buffers, state);
    job.result.step_seconds.push_back(seconds_since(begin));
    job.done++;
    if (request.progress && !request.progress(job.done, job.steps)) {
      throw Error(Code::cancelled, text("cancelled after ", job.done, " of ", job.steps, " steps"));
    }
  }
  for (std::int64_t image = 0; image < images; image++) {
    for (std::int64_t cell = 0; cell < plan.cells; cell++) {
      canvas.tokens[place(image, cell)] = state.known[static_cast<std::size_t>(image * state.columns + cell)];
    }
  }
}

Result Runner::Parts::generate(const Request& request) {
  const Sampling sampling = sampling_of(request, bundle.sampler);
  const std::string schedule = request.schedule.empty() ? bundle.schedules.front().specification : request.schedule;
  check_request(request, bundle.model);
  Canvas canvas = make_canvas(request, bundle.model);
  if (!canvas.plain()) {
    require_keeping(parse_specification(schedule), schedule);
  }
  const auto images = static_cast<std::int64_t>(request.classes.size());
  const std::lock_guard<std::mutex> held(turn);
  std::vector<const Plan*> window_plans;
  Result result;
  for (const Window& window : canvas.windows) {
    window_plans.push_back(&plan(schedule, window.kept));
    result.steps += static_cast<std::int64_t>(window_plans.back()->steps.size());
  }
  const std::int64_t parts = (images + request.batch - 1) / request.batch;
  Job job{request, sampling, uniforms_of(request, canvas.cells()), 0, parts * result.steps, result};
  result.step_seconds.reserve(static_cast<std::size_t>(job.steps)); // so that the loop allocates nothing
  result.engine_seconds.reserve(static_cast<std::size_t>(job.steps));
  Clock::time_point start = Clock::now();
  for (std::int64_t first = 0; first < images; first += request.batch) {
    const Part part{first, std::min(request.batch, images - first)};
    for (std::size_t window = 0; window < canvas.windows.size(); window++) {
      decode(*window_plans[window], canvas.windows[window], part, job, canvas);
    }
  }
  result.seconds = seconds_since(start);
  start = Clock::now();
  for (std::int64_t first = 0; first < images && bundle.tokenizer; first += request.batch) {
    engine->decode(canvas.tokens.data() + first * canvas.cells(), std::min(request.batch, images - first), canvas.rows,
                   canvas.columns, result);
  }
  result.image_seconds = seconds_since(start);
  result.images = images;
  result.rows = canvas.rows;
  result.columns = canvas.columns;
  result.tokens = std::move(canvas.tokens);
  while (plans.size() > PLANS) {
    plans.pop_back();
  }
  return result;
}

std::vector<std::int64_t> Runner::Parts::encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                                std::int64_t width) {
  if (!bundle.tokenizer) {
    throw Error(Code::request, "the bundle has no image tokenizer: export it with --tokenizer FILE");
  }
  const std::int64_t side = bundle.tokenizer->downsampling;
  if (images < 1 || height < side || width < side || height % side != 0 || width % side != 0) {
    throw Error(Code::request,
                text(images, " images of ", height, "x", width, " are not a whole number of ", side, "-pixel tokens"));
  }
  const std::lock_guard<std::mutex> held(turn);
  std::vector<std::int64_t> tokens;
  for (std::int64_t first = 0; first < images; first += ENCODED_AT_ONCE) {
    const std::vector<std::int64_t> part =
        engine->encode(pixels + first * height * width * 3, std::min(ENCODED_AT_ONCE, images - first), height, width);
    tokens.insert(tokens.end(), part.begin(), part.end());
  }
  return tokens;
}

Runner::Runner(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Runner::Runner(Runner&&) noexcept = default;
Runner& Runner::operator=(Runner&&) noexcept = default;
Runner::~Runner() = default;

Runner Runner::open(const std::filesystem::path& bundle, const Options& options) {
  return guarded([&] { return Runner(std::make_unique<Parts>(bundle, options)); });
}

Result Runner::generate(const Request& request) {
  return guarded([&] { return parts_->generate(request); });
}

std::vector<std::int64_t> Runner::encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                         std::int64_t width) {
  return guarded([&] { return parts_->encode(pixels, images, height, width); });
}

const Facts& Runner::facts() const { return parts_->facts; }

} // namespace arforge
