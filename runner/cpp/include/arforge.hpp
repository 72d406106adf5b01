// The C++ runner: opens a bundle and generates the same tokens as the Python runner.
//
//   arforge::Runner runner = arforge::Runner::open("llamagen-l.bundle");
//   arforge::Request request;
//   request.classes = {207, 360};
//   request.schedule = "zipar:16";
//   arforge::Result result = runner.generate(request);
//
// All errors are arforge::Error. Link arforge::arforge (CMake: find_package(arforge)).
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arforge.h"

namespace arforge {

struct Bundle;
struct Profile;
struct ProfileSettings;

// What went wrong; the values are those of the C interface.
enum class Code : int {
  argument = ARFORGE_ERROR_ARGUMENT,
  request = ARFORGE_ERROR_REQUEST,
  schedule = ARFORGE_ERROR_SCHEDULE,
  cancelled = ARFORGE_CANCELLED,
  bundle = ARFORGE_ERROR_BUNDLE,
  manifest = ARFORGE_ERROR_MANIFEST,
  format_version = ARFORGE_ERROR_FORMAT_VERSION,
  path = ARFORGE_ERROR_PATH,
  missing_file = ARFORGE_ERROR_MISSING_FILE,
  file_size = ARFORGE_ERROR_FILE_SIZE,
  hash = ARFORGE_ERROR_HASH,
  engine = ARFORGE_ERROR_ENGINE,
  memory = ARFORGE_ERROR_MEMORY,
  internal = ARFORGE_ERROR_INTERNAL,
  numerics = ARFORGE_ERROR_NUMERICS,
  queue_full = ARFORGE_ERROR_QUEUE_FULL,
  deadline_exceeded = ARFORGE_ERROR_DEADLINE_EXCEEDED,
};

class ARFORGE_API Error : public std::runtime_error {
public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] Code code() const noexcept { return code_; }

private:
  Code code_;
};

struct Options {
  std::string target = "onnxruntime"; // of an engine that `arforge build` made: onnxruntime, tensorrt, tensorrt-rtx
  std::string precision;              // of that engine; empty: that of the blocks which the bundle stores, or fp32, of
                                      // TensorRT fp16
  std::string provider = "cpu";       // of ONNX Runtime: cpu, cuda, tensorrt, tensorrt-rtx
  std::string plugin;                 // the library of the provider tensorrt-rtx, or of a target; empty: its usual name
  // Of TensorRT: calls of a static schedule that the device makes by itself, where it can, between two looks of the
  // host: for progress, previews, cancel and NaN; 0: all of an image. Left out: 8.
  std::optional<std::int64_t> look_every;
  int threads = 0;           // CPU threads; 0: one for each core that the process may use
  bool check_hashes = false; // read every file of the bundle and compare its sha256
};

// A setting of a request: left out (the bundle's default), one value for all images, or one an image.
template <class T>
struct Setting {
  std::vector<T> values; // none, one, or (images)

  Setting() = default;
  Setting(std::nullopt_t) {}
  Setting(T value) : values{value} {}
  Setting(std::vector<T> each) : values(std::move(each)) {}
  Setting(std::initializer_list<T> each) : values(each) {}
};

// Features of one prompt, as a text encoder gives them, without padding. The numbers stay the caller's.
struct Features {
  const float* values = nullptr; // (length, width)
  std::int64_t length = 0, width = 0;
};

// Ids of one prompt's tokens, without padding: as the tokenizer of the bundle's text encoder gives them, with the token
// that ends a prompt; or, of a model that reads ids of a vocabulary of its own, a whole prompt, template included,
// where the ids that begin the image may be left out. The numbers stay the caller's.
struct Ids {
  const std::int64_t* values = nullptr; // (length)
  std::int64_t length = 0;
};

// How a preview shows cells that are not decided yet: as a decided one that is nearest, or grey.
enum class Undecided : int { nearest = ARFORGE_NEAREST, grey = ARFORGE_GREY };

struct Pictures {
  std::vector<std::uint8_t> pixels; // (images, height, width, 3)
  std::int64_t height = 0, width = 0;
};

// Some images of a request after a step. It holds until the function that it is given to returns.
class ARFORGE_API Partial {
public:
  struct Source;
  explicit Partial(const Source& source) : source_(&source) {}

  std::int64_t first = 0, images = 0; // their place in the request, and how many
  std::int64_t done = 0, steps = 0;   // steps that all of them have behind them, of how many
  std::int64_t rows = 0, columns = 0; // of the grid

  // What is decided, (images, rows * columns) in raster order; -1 in the other cells.
  [[nodiscard]] std::vector<std::int64_t> tokens() const;
  // The images so far: one call of the image decoder. Throws Error (request) if the bundle has no image tokenizer.
  [[nodiscard]] Pictures pixels(Undecided undecided = Undecided::nearest) const;
  // `count` of the images from `place` on, which are from `from` on in a request of their own.
  [[nodiscard]] Partial part(std::int64_t place, std::int64_t count, std::int64_t from) const;

private:
  const Source* source_;
  std::int64_t offset_ = 0; // of the first image in the source
};

struct Request {
  std::vector<std::int64_t> classes; // (images)
  std::vector<Features> features;    // (images), in place of classes, of models that take prompts
  std::vector<Ids> ids;              // (images), in place of both, where `Facts::id_slots` is more than 0
  std::vector<std::uint64_t> seeds;  // (images), or empty: 0, 1, ...
  std::string schedule;              // a specification such as "zipar:16"; empty: the bundle's first
  Setting<double> guidance;          // 1 is off
  Setting<double> temperature;       // 0 is greedy
  Setting<std::int64_t> top_k;       // 0 is off
  Setting<double> top_p;             // 1 is off
  bool greedy = false;               // temperature 0 for all
  std::int64_t batch = 32;           // images decoded at a time

  // Of models that read ids of their own. What guidance leads away from: "padded", the prompt with its middle padded;
  // "image", the ids that begin the image, alone; "negative", another prompt; empty: the bundle's.
  std::string unconditional;
  std::vector<Ids> negative_ids; // those prompts: one for all images, or one an image; empty: the bundle's
  std::string prefill;           // "causal"; "bidirectional": a prompt's tokens see each other; empty: causal

  // Tokens that stay (models of random order): (rows, columns), or (images, rows, columns); -1 where to decide.
  std::vector<std::int64_t> known;
  std::int64_t known_rows = 0, known_columns = 0;

  // Takes pixels (images, height, width, 3) a batch at a time, in order, as they are made; the result's then stay
  // empty.
  std::function<void(const std::uint8_t* pixels, std::int64_t images, std::int64_t height, std::int64_t width)> receive;

  // Called after every engine call, or where TensorRT makes several at every look, with the steps that all images of a
  // batch have behind them, and all steps of the request; false cancels.
  std::function<bool(std::int64_t done, std::int64_t steps)> progress;
  // Called after every engine call with the images that are being decoded; what it does not ask for costs nothing.
  std::function<void(const Partial& partial)> preview;
  const std::atomic<bool>* cancel = nullptr; // looked at before every step; true cancels
  bool single_calls = false; // whether the host makes each call, so that each is timed, whatever `Options::look_every`
};

struct Result {
  std::vector<std::int64_t> tokens; // (images, rows * columns), raster order
  std::int64_t images = 0;
  std::int64_t rows = 0, columns = 0; // of the grid: the model's, or that of the known tokens

  std::vector<std::uint8_t> pixels; // (images, height, width, 3); empty where none are made, or all are received
  std::int64_t height = 0, width = 0;

  std::int64_t steps = 0;                           // engine calls until the last image of a batch was done
  std::vector<std::int64_t> passes;                 // (images) until each was: fewer where it runs ahead on drafts
  double seconds = 0;                               // decoding of tokens, wall clock
  double image_seconds = 0;                         // tokens to pixels, wall clock
  double condition_seconds = 0;                     // prompts to filled caches, wall clock; nothing for classes
  std::vector<double> step_seconds, engine_seconds; // (looks of the request): a whole step, and the engine's part of it
  std::vector<std::int64_t> step_widths,
      step_queries;              // (likewise, of its first call): tokens of a row, and cells asked for
  std::int64_t prompt_slots = 0; // of all rows, that were filled with prompts
  std::string schedule;          // by which its largest batch was decoded: `jacobi:auto` with the window that it took
};

// What a caller may want to know of an open bundle.
struct Facts {
  std::string target, precision;    // of the engine
  std::vector<std::int64_t> widths; // of steps that it was built for; none: any
  std::int64_t exact_width = 0;     // the widest step in which a token gets the bits that it gets alone; 0: not known
  std::string provider;             // of ONNX Runtime
  int threads = 0;                  // CPU threads that were asked for; 0: one for each core that the process may use
  std::string family;
  std::string order;                  // of cells that the model was trained for: raster, regions or random
  std::int64_t classes = 0;           // 0 where the model takes prompts
  std::vector<std::string> labels;    // a name a class, or none
  std::int64_t feature_slots = 0;     // rows of a prompt's features at most; 0 where the model takes none
  std::int64_t feature_width = 0;     // numbers a row
  std::int64_t id_slots = 0;          // ids of a prompt at most; 0 where the bundle takes none
  std::int64_t id_vocabulary = 0;     // ids of the model's own are less; 0 where they are those of a text encoder
  std::int64_t rows = 0, columns = 0; // of the grid
  std::int64_t vocabulary = 0;        // image tokens are [0, vocabulary)
  std::int64_t downsampling = 0;      // pixels a token, a side; 0 where the bundle has no tokenizer
  std::vector<std::string> schedules; // stored in the bundle; others are compiled
  double guidance = 1, temperature = 1, top_p = 1;
  std::int64_t top_k = 0;
};

// Generates images from one bundle. Calls from several threads take turns.
class ARFORGE_API Runner {
public:
  static Runner open(const std::filesystem::path& bundle, const Options& options = {});

  Runner(Runner&&) noexcept;
  Runner& operator=(Runner&&) noexcept;
  ~Runner();

  // Throws Error: request or schedule for arguments that do not fit, cancelled, engine, memory, and numerics for the
  // step whose logits are non-finite. The runner can be used on.
  [[nodiscard]] Result generate(const Request& request);

  // Tokens (images, height / downsampling, width / downsampling) of pixels (images, height, width, 3).
  [[nodiscard]] std::vector<std::int64_t> encode(const std::uint8_t* pixels, std::int64_t images, std::int64_t height,
                                                 std::int64_t width);

  [[nodiscard]] const Facts& facts() const;

private:
  friend class Batcher;
  friend ARFORGE_API Profile profile(Runner& runner, const Request& request, const ProfileSettings& settings);
  struct Implementation;
  [[nodiscard]] const Bundle& bundle() const;
  explicit Runner(std::unique_ptr<Implementation> implementation);
  std::unique_ptr<Implementation> implementation_;
};

} // namespace arforge
