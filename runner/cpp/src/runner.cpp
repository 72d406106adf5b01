// The runner: a loop that executes a schedule against an engine.
#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "arforge.hpp"
#include "backends/backend.h"
#include "bundle/bundle.h"
#include "canvas.h"
#include "conditioner.h"
#include "decoding.h"
#include "device.h"
#include "guarded.h"
#include "numerics.h"
#include "plan.h"
#include "plans.h"
#include "prefill.h"
#include "preview.h"
#include "request.h"
#include "schedules/jacobi_windows.h"
#include "schedules/specification.h"
#include "text.h"

namespace arforge {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t ENCODED_AT_ONCE = 32; // images
constexpr int MAX_OPENINGS = 100;            // of a bundle that is replaced all the while

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One request as it proceeds.
struct Generation {
  const Request& request;
  Sampling sampling;
  Conditions conditions;
  std::vector<std::uint64_t> seeds; // (images)
  std::int64_t done, steps;         // of the whole request
  std::int64_t each;                // steps of one batch
  std::int64_t together;            // images of one batch
  Result& result;
};

// Whatever becomes of a request: caches of its prompts are dropped when it is over.
struct Releasing {
  Prefill& prefill;
  ~Releasing() { prefill.release(); }
};

// The images that are decoded together.
struct Batch {
  std::int64_t first, images;
};

} // namespace

struct Runner::Implementation {
  Implementation(Bundle opened, const Options& options);

  void decode(const Plan& plan, const Window& window, const Batch& batch, Generation& generation, Canvas& canvas);
  Result generate(const Request& request);
  std::vector<std::int64_t> encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                   std::int64_t width);

  Bundle bundle;
  Backend backend;
  Engine& engine;
  ImageCodec& codec;
  Conditioner conditioner;
  Prefill prefill;
  Facts facts;
  Plans plans;
  std::mutex turn;
};

Runner::Implementation::Implementation(Bundle opened, const Options& options)
    : bundle(std::move(opened)), backend(open_backend(bundle, options)), engine(*backend.engine), codec(*backend.codec),
      conditioner(bundle, options), prefill(engine, bundle.model), facts(facts_of(bundle, options)),
      plans(bundle, engine) {
  facts.widths = engine.facts().widths;
  facts.exact_width = engine.facts().exact_width;
}

// Decodes one window of the canvas for the images of one batch.
void Runner::Implementation::decode(const Plan& plan, const Window& window, const Batch& batch, Generation& generation,
                                    Canvas& canvas) {
  const Request& request = generation.request;
  const std::int64_t images = batch.images;
  const std::vector<Prompt> prompts =
      generation.conditions.rows(batch.first, images, generation.sampling.guided(batch.first, images));
  const Clock::time_point filling = Clock::now();
  prefill.start(plan, images, prompts, batch.first);
  const double filled = conditioned(bundle.model) ? seconds_since(filling) : 0;
  generation.result.condition_seconds += filled;
  generation.result.seconds -= filled; // of which it is a part otherwise
  generation.result.prompt_slots += slots_before(prompts);
  const std::vector<std::int64_t> tokens = canvas.take(window, batch.first, images);
  const Drawing drawing{generation.seeds, window.cells, generation.sampling.guidance, batch.first};
  const std::unique_ptr<Decoding> decoding = decoding_of(plan, start_of(plan, bundle.model, images, prompts, tokens),
                                                         drawing, request.single_calls ? nullptr : &engine);
  const std::int64_t before = generation.done;
  const Partial::Source seen{canvas,      window, *decoding,      bundle.image_tokenizer ? &codec : nullptr,
                             batch.first, images, generation.each};
  bool first = true;
  while (const std::optional<Shape> shape = decoding->shape()) {
    if (request.cancel != nullptr && request.cancel->load()) {
      throw Error(Code::cancelled, text("cancelled after ", generation.done, " of ", generation.steps, " steps"));
    }
    const Clock::time_point begin = Clock::now();
    StepBuffers& buffers = engine.buffers(*shape);
    fill_settings(generation.sampling, batch.first, images, buffers);
    decoding->fill(buffers);
    const Clock::time_point start = Clock::now();
    decoding->run(engine, *shape, std::exchange(first, false));
    generation.result.engine_seconds.push_back(seconds_since(start));
    note_call(generation.result, *shape);
    if (const std::int64_t spoilt = spoilt_image(*decoding, buffers, bundle.model, images); spoilt >= 0) {
      engine.clear();
      throw Error(Code::numerics, text("step ", decoding->done(), " of ", plan.length(), ", image ",
                                       batch.first + spoilt, ": the logits are non-finite, or tokens outside 0..",
                                       bundle.model.vocabulary - 1, "; ", advice(engine)));
    }
    decoding->store(buffers);
    generation.result.step_seconds.push_back(seconds_since(begin));
    generation.done = before + decoding->done();
    if (request.progress && !request.progress(generation.done, generation.steps)) {
      throw Error(Code::cancelled, text("cancelled after ", generation.done, " of ", generation.steps, " steps"));
    }
    if (request.preview) {
      request.preview(partial_of(seen, generation.done - batch.first / generation.together * generation.each));
    }
  }
  for (std::int64_t image = 0; image < images; image++) {
    generation.result.passes[static_cast<std::size_t>(batch.first + image)] += decoding->passes(image);
    for (std::int64_t cell = 0; cell < plan.cells; cell++) {
      canvas.tokens[canvas.place(window, batch.first + image, cell)] = decoding->token(image, cell);
    }
  }
}

Result Runner::Implementation::generate(const Request& request) {
  const std::string schedule = request.schedule.empty() ? bundle.schedules.front().specification : request.schedule;
  check_asked(request, bundle);
  check_request(request);
  const Sampling sampling = sampling_of(request, bundle.sampler);
  Canvas canvas = make_canvas(request, bundle.model);
  if (!canvas.plain()) {
    require_keeping(parse_specification(schedule), schedule);
  }
  const std::int64_t images = images_of(request);
  const std::lock_guard<std::mutex> held(turn);
  const Clock::time_point begin = Clock::now();
  const Releasing releasing{prefill};
  Conditions conditions = conditioner.conditions(request, sampling.guided(0, images));
  const std::vector<MeasuredWindow>& measured = engine.facts().measured;
  Result result;
  result.schedule = settled(schedule, measured, std::min(request.batch, images));
  result.condition_seconds = seconds_since(begin);
  result.passes.resize(static_cast<std::size_t>(images));
  std::int64_t steps = 0;
  std::int64_t calls = 0;
  const std::int64_t slots = prompt_slots(bundle.model, conditions.longest());
  std::vector<const Plan*> window_plans = plans.of(result.schedule, canvas, slots);
  for (const Plan* plan : window_plans) {
    steps += plan->length();
    calls += plan->calls();
  }
  const std::int64_t each = images_together(request.batch, window_plans, engine.facts());
  const std::int64_t batches = (images + each - 1) / each;
  Generation generation{request, sampling, std::move(conditions), seeds_of(request), 0, batches * steps, steps,
                        each,    result};
  reserve_calls(result, static_cast<std::size_t>(batches * calls)); // so that the loop allocates nothing
  ImageCodec::Receive receive = request.receive;
  if (bundle.image_tokenizer && !receive) {
    const std::int64_t side = bundle.image_tokenizer->downsampling;
    result.pixels.reserve(entries_of({images, canvas.cells(), side, side, 3})); // before the work
    receive = [&](const std::uint8_t* pixels, std::int64_t count, std::int64_t height, std::int64_t width) {
      result.pixels.insert(result.pixels.end(), pixels, pixels + count * height * width * 3);
    };
  }
  for (std::int64_t first = 0; first < images; first += each) {
    const Batch batch{first, std::min(each, images - first)};
    const Clock::time_point start = Clock::now();
    window_plans = plans.of(settled(schedule, measured, batch.images), canvas, slots);
    for (std::size_t window = 0; window < canvas.windows.size(); window++) {
      decode(*window_plans[window], canvas.windows[window], batch, generation, canvas);
    }
    const Clock::time_point decoded = Clock::now();
    result.seconds += std::chrono::duration<double>(decoded - start).count();
    if (bundle.image_tokenizer) {
      codec.decode(canvas.tokens.data() + first * canvas.cells(), batch.images, canvas.rows, canvas.columns, receive);
      result.image_seconds += seconds_since(decoded);
    }
  }
  if (bundle.image_tokenizer) {
    result.height = canvas.rows * bundle.image_tokenizer->downsampling;
    result.width = canvas.columns * bundle.image_tokenizer->downsampling;
  }
  result.steps = *std::max_element(result.passes.begin(), result.passes.end());
  result.images = images;
  result.rows = canvas.rows;
  result.columns = canvas.columns;
  result.tokens = std::move(canvas.tokens);
  plans.trim();
  return result;
}

std::vector<std::int64_t> Runner::Implementation::encode(const std::uint8_t* pixels, std::int64_t images,
                                                         std::int64_t height, std::int64_t width) {
  check_images(bundle.image_tokenizer, images, height, width);
  const std::lock_guard<std::mutex> held(turn);
  std::vector<std::int64_t> tokens;
  for (std::int64_t first = 0; first < images; first += ENCODED_AT_ONCE) {
    const std::vector<std::int64_t> part =
        codec.encode(pixels + first * height * width * 3, std::min(ENCODED_AT_ONCE, images - first), height, width);
    tokens.insert(tokens.end(), part.begin(), part.end());
  }
  return tokens;
}

Runner::Runner(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}
Runner::Runner(Runner&&) noexcept = default;
Runner& Runner::operator=(Runner&&) noexcept = default;
Runner::~Runner() = default;

// A bundle that is replaced while it is opened is opened again: a reader sees it as it was, or as it has become.
Runner Runner::open(const std::filesystem::path& bundle, const Options& options) {
  return guarded([&] {
    check_threads(options.threads);
    for (int opening = 1;; opening++) {
      const std::string before = manifest_content(bundle);
      try {
        Bundle opened = open_bundle(bundle);
        if (options.check_hashes) {
          check_hashes(opened);
        }
        Options chosen = options;
        if (const std::string usual = default_precision(opened, options.target); options.precision.empty()) {
          chosen.precision = usual;
        }
        return Runner(std::make_unique<Implementation>(std::move(opened), chosen));
      } catch (const Error&) {
        if (opening == MAX_OPENINGS || manifest_content(bundle) == before) {
          throw;
        }
      }
    }
  });
}

Result Runner::generate(const Request& request) {
  return guarded([&] { return implementation_->generate(request); });
}

std::vector<std::int64_t> Runner::encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                         std::int64_t width) {
  return guarded([&] { return implementation_->encode(pixels, images, height, width); });
}

const Facts& Runner::facts() const { return implementation_->facts; }

const Bundle& Runner::bundle() const { return implementation_->bundle; }

} // namespace arforge
