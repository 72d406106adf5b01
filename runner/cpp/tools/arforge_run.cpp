// arforge-run: generates images from a bundle, with the options of `arforge run`.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iomanip>
#include <iostream>
#include <optional>

#include "arrays.h"
#include "features_file.h"
#include "options.h"
#include "output.h"
#include "pictures.h"

namespace {

constexpr std::uint8_t PAINTED = 128; // a mask's pixels of this lightness or more are painted

// The tokens that stay: those of --keep, where no pixel of the cell is painted.
void keep_parts(arforge::Runner& runner, const Command& command, arforge::Request& request) {
  const std::int64_t side = runner.facts().downsampling;
  if (side == 0) {
    throw UsageError(command.bundle + " has no image tokenizer: export it with --tokenizer FILE");
  }
  const Picture image = read_picture(command.keep);
  const Picture mask = read_picture(command.mask);
  const std::int64_t height = request.known_rows * side;
  const std::int64_t width = request.known_columns * side;
  if (image.channels != 3 || image.height != height || image.width != width) {
    throw UsageError(command.keep + ": not a colour image of " + std::to_string(height) + "x" + std::to_string(width) +
                     " pixels (height x width)");
  }
  if (mask.channels != 1 || mask.height != height || mask.width != width) {
    throw UsageError(command.mask + ": not a grey image of the size of --keep");
  }
  request.known = runner.encode(image.pixels.data(), 1, height, width);
  for (std::int64_t pixel = 0; pixel < height * width; pixel++) {
    if (mask.pixels[static_cast<std::size_t>(pixel)] >= PAINTED) {
      const std::int64_t cell = pixel / width / side * request.known_columns + pixel % width / side;
      request.known[static_cast<std::size_t>(cell)] = -1;
    }
  }
  const auto painted = std::count(request.known.begin(), request.known.end(), -1);
  if (painted == 0 || painted == static_cast<std::ptrdiff_t>(request.known.size())) {
    throw UsageError(command.mask + " leaves nothing to " + (painted == 0 ? "paint" : "keep"));
  }
}

// Where images go as they are made.
class Images {
public:
  Images(const Command& command, std::int64_t images)
      : command_(command), images_(images), page_(images, command.across) {
    if (!command.npz.empty()) {
      file_.emplace(command.npz);
    }
  }

  void add(const std::uint8_t* pixels, std::int64_t images, std::int64_t height, std::int64_t width) {
    if (!(command_.output.empty() && command_.preview.empty())) {
      page_.add(pixels, images, height, width);
    }
    if (file_) {
      const std::int64_t each = height * width * 3;
      if (!npz_) {
        const std::string head = npy_head("|u1", {images_, height, width, 3});
        npz_.emplace(file_->stream(), "arr_0", head.size() + static_cast<std::uint64_t>(images_ * each));
        npz_->write(head.data(), head.size());
      }
      npz_->write(pixels, static_cast<std::size_t>(images * each));
    }
  }

  // Writes the page with the images that are being made behind those that are done, every so many steps.
  void show(const arforge::Partial& partial) {
    if (partial.done < shown_) { // the next images
      shown_ = 0;
    }
    if (partial.done >= shown_ + command_.preview_every && partial.done < partial.steps) {
      shown_ = partial.done;
      const arforge::Pictures pictures = partial.pixels();
      Page so_far = page_;
      so_far.add(pictures.pixels.data(), partial.images, pictures.height, pictures.width);
      write(command_.preview, so_far);
    }
  }

  void finish() {
    write(command_.output, page_);
    write(command_.preview, page_);
    if (npz_ && file_) {
      npz_->finish();
      file_->finish();
    }
  }

private:
  void write(const std::string& name, const Page& page) const {
    if (!name.empty()) {
      Output output(name);
      write_picture(output.stream(), name, page.picture(), command_.zoom);
      output.finish();
    }
  }

  const Command& command_;
  std::int64_t images_;
  std::int64_t shown_ = 0; // steps of the images that are being made
  Page page_;
  std::optional<Output> file_;
  std::optional<Npz> npz_;
};

void write_tokens(const std::string& path, const arforge::Result& result) {
  Output output(path);
  output.stream() << npy_head("<i8", {result.images, result.rows * result.columns});
  output.stream().write(reinterpret_cast<const char*>(result.tokens.data()),
                        static_cast<std::streamsize>(result.tokens.size() * sizeof result.tokens[0]));
  output.finish();
}

void write_timings(const std::string& path, const arforge::Result& result) {
  const auto list = [](std::ostream& out, const auto& numbers) {
    const char* comma = "[";
    for (const auto each : numbers) {
      out << comma << each;
      comma = ", ";
    }
    out << ']';
  };
  Output output(path);
  std::ostream& json = output.stream();
  json << std::setprecision(9) << "{\"images\": " << result.images << ", \"steps\": " << result.steps
       << ", \"seconds\": " << result.seconds << ", \"image_seconds\": " << result.image_seconds
       << ", \"condition_seconds\": " << result.condition_seconds << ", \"passes\": ";
  list(json, result.passes);
  json << ", \"step_seconds\": ";
  list(json, result.step_seconds);
  json << ", \"engine_seconds\": ";
  list(json, result.engine_seconds);
  json << "}\n";
  output.finish();
}

// The last of the generations that are measured.
arforge::Result profiled(arforge::Runner& runner, const Command& command) {
  arforge::Profile profile = arforge::profile(runner, command.request, command.profiling);
  Output output(command.profile);
  output.stream() << profile.json;
  output.finish();
  return std::move(profile.result);
}

void run(Command& command) {
  const std::vector<std::pair<std::string, std::string>> outputs = {
      {"--output", command.output}, {"--preview", command.preview}, {"--npz", command.npz},
      {"--tokens", command.tokens}, {"--timings", command.timings}, {"--profile", command.profile}};
  check_outputs(outputs);
  const auto opening = std::chrono::steady_clock::now();
  arforge::Runner runner = arforge::Runner::open(command.bundle, command.open);
  command.profiling.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - opening).count();
  const arforge::Facts& facts = runner.facts();
  if (facts.downsampling == 0 && !(command.output.empty() && command.preview.empty() && command.npz.empty())) {
    throw UsageError(command.bundle + " has no image tokenizer and gives tokens only: use --tokens");
  }
  arforge::Request& request = command.request;
  FeaturesFile features; // which the request refers to
  if (!command.features.empty()) {
    features = read_features(command.features, command.features_mask);
    request.features = features.prompts;
  }
  std::vector<IdsFile> ids; // likewise
  for (const std::string& path : command.prompt_ids) {
    ids.push_back(read_ids(path, command.prompt_ids_mask));
    request.ids.insert(request.ids.end(), ids.back().prompts.begin(), ids.back().prompts.end());
  }
  IdsFile negative;
  if (!command.negative_ids.empty()) {
    negative = read_ids(command.negative_ids, "");
    request.negative_ids = negative.prompts;
  }
  const std::int64_t count = spread(request, command.samples);
  if (command.rows > 0 || !command.keep.empty()) {
    request.known_rows = command.rows > 0 ? command.rows : facts.rows;
    request.known_columns = command.rows > 0 ? command.columns : facts.columns;
    if (command.keep.empty()) {
      request.known.assign(static_cast<std::size_t>(request.known_rows * request.known_columns), -1);
    } else {
      keep_parts(runner, command, request);
    }
  }
  if (request.schedule.empty()) {
    request.schedule = facts.schedules.front();
  }
  if (!command.quiet) {
    request.progress = [](std::int64_t done, std::int64_t steps) {
      std::fprintf(stderr, "\r%lld of %lld steps%s", static_cast<long long>(done), static_cast<long long>(steps),
                   done == steps ? "\n" : "");
      return true;
    };
  }
  Images images(command, count);
  request.receive = [&](const std::uint8_t* pixels, std::int64_t some, std::int64_t height, std::int64_t width) {
    images.add(pixels, some, height, width);
  };
  if (!command.preview.empty()) {
    request.preview = [&](const arforge::Partial& partial) { images.show(partial); };
  }
  const arforge::Result result = command.profile.empty() ? runner.generate(request) : profiled(runner, command);
  if (!result.pixels.empty()) { // which nothing has received
    images.add(result.pixels.data(), result.images, result.height, result.width);
  }
  if (!command.tokens.empty()) {
    write_tokens(command.tokens, result);
  }
  images.finish();
  if (!command.timings.empty()) {
    write_timings(command.timings, result);
  }
  const bool taken =
      std::any_of(outputs.begin(), outputs.end(), [](const auto& output) { return is_standard_output(output.second); });
  const double each =
      1000 * (result.condition_seconds + result.seconds + result.image_seconds) / static_cast<double>(result.images);
  std::fprintf(taken ? stderr : stdout,
               "%lld images, %s: %lld steps, %.1f ms an image (onnxruntime %s, %s, batch %lld)\n",
               static_cast<long long>(result.images), request.schedule.c_str(), static_cast<long long>(result.steps),
               each, facts.precision.c_str(), command.open.provider.c_str(),
               static_cast<long long>(std::min(request.batch, result.images)));
}

} // namespace

int main(int count, char** words) {
  const std::vector<std::string> given(words + 1, words + count);
  if (std::find(given.begin(), given.end(), "--help") != given.end()) {
    std::cout << USAGE;
    return 0;
  }
  try {
    Command command = parse_command(given);
    run(command);
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "arforge-run: " << error.what() << "\nTry 'arforge-run --help'.\n";
    return 2;
  } catch (const arforge::Error& error) {
    std::cerr << "arforge-run: " << error.what() << '\n';
    return 100 + static_cast<int>(error.code()); // scripts tell errors apart by it
  } catch (const std::exception& error) {
    std::cerr << "arforge-run: " << error.what() << '\n';
    return 1;
  }
}
