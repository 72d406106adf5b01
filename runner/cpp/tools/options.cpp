#include "options.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <map>

const char* const USAGE = R"(Usage: arforge-run BUNDLE [OPTIONS]

Generate images from BUNDLE: one a class or prompt, or --samples in all. A seed decides its image alone.

  --schedule TEXT      Decoding schedule, such as ntp or zipar:16.  [default: the bundle's first]
  --class N[,N-M]      Classes: 3 or 1,5 or 0-9; may be given again.
  --features FILE.npy  In their place, features of prompts: floats [prompts, tokens, width].
  --features-mask FILE.npy
                       Ones for a prompt's tokens, then zeros: [prompts, tokens].  [default: all ones]
  --prompt-ids FILE.npy
                       Or the ids of their tokens: int64 or int32 [prompts, tokens], or [tokens] of one; may be given
                       again.
  --prompt-ids-mask FILE.npy
                       Their mask, likewise, of one file.  [default: all ones]
  --negative-ids FILE.npy
                       What not to draw, of models that read ids of prompts: int64 or int32 [tokens].
  --unconditional TEXT What guidance leads away from, of models that read ids: the prompt padded, none (image), or a
                       negative one.  [default: the bundle's]
  --prefill TEXT       Whether the tokens of a prompt see those behind them, of models that read ids: causal or
                       bidirectional.  [default: causal]
  --seed N[,N-M]       One seed an image, or the first.  [default: 0]
  --samples N          Images in all, going round the classes or prompts.
  --guidance FLOAT     Guidance scale; 1 is off.  [default: the bundle's]
  --temperature FLOAT  Temperature; 0 is greedy.  [default: the bundle's]
  --top-k N            Sample from the K most likely tokens; 0 is off.  [default: the bundle's]
  --top-p FLOAT        Sample from the most likely tokens of mass P.  [default: the bundle's]
  --greedy             Take the most likely token (temperature 0).
  --batch N            Images decoded at a time.  [default: 32]
  --target TEXT        Engine to run on: onnxruntime, tensorrt or tensorrt-rtx.  [default: onnxruntime]
  --precision TEXT     Precision of that engine.  [default: fp32, of TensorRT fp16, or blocks that are stored]
  --provider TEXT      Of ONNX Runtime: cpu, cuda, tensorrt or tensorrt-rtx.  [default: cpu]
  --plugin FILE        Library of the tensorrt-rtx provider, or of a target.  [default: its usual name]
  --look-every N       Of TensorRT: calls between two looks of the host, where it can; 0: all.  [default: 8]
  --threads N          CPU threads.  [default: one for each core that the process may use]
  --check-hashes       Compare every file of the bundle with its sha256 first.
  --output FILE        Grid of the images, .png or .ppm.
  --columns N          Images a row of the grid.  [default: nearly square]
  --zoom N             Size of a pixel in the grid.  [default: 1]
  --preview FILE       Grid of the images as they are made, written again and again.
  --preview-every N    Steps between those.  [default: 16]
  --npz FILE           Array file for FID evaluators: arr_0, uint8 [images, height, width, 3].
  --tokens FILE        Tokens as .npy: int64 [images, cells], raster order.
  --keep FILE.ppm      Image to keep parts of: in- and outpainting, editing (models of random order).
  --mask FILE.pgm      Of the size of --keep, white where to paint.
  --grid RxC           Tokens of a larger image, decoded window by window (models of random order).
  --timings FILE       JSON: seconds of all, of each step, of the engine in it, and of the images.
  --profile FILE       JSON of `arforge profile`: times a step and width, memory, power, clocks, throttling.
  --warm-ups N         Generations that it does not count.  [default: 1]
  --repeats N          Generations that it counts.  [default: 3]
  --sysfs FOLDER       Where it reads power, clocks and temperatures.  [default: /sys]
  --quiet              Print no progress.
)";

namespace {

// The whole of `given` as a number.
template <class T>
T number(const std::string& name, const std::string& given) {
  T value{};
  const char* end = given.data() + given.size();
  const auto [stop, failed] = std::from_chars(given.data(), end, value);
  if (given.empty() || stop != end || failed != std::errc()) {
    throw UsageError(name + ": '" + given + "' is not a number that fits");
  }
  return value;
}

template <class T>
T at_least(const std::string& name, const std::string& given, T least) {
  const T value = number<T>(name, given);
  if (value < least) {
    throw UsageError(name + ": " + given + " is less than " + std::to_string(least));
  }
  return value;
}

constexpr int MOST = 1 << 20; // numbers of a range

[[noreturn]] void refuse_range(const std::string& name, const std::string& given) {
  throw UsageError(name + ": '" + given + "' is not a rising range of fewer than " + std::to_string(MOST) + " numbers");
}

// `3`, `1,5`, `0-9`, appended to a list.
template <class T>
void append_numbers(const std::string& name, const std::string& given, std::vector<T>& list) {
  for (std::size_t start = 0; start <= given.size();) {
    const std::size_t end = std::min(given.find(',', start), given.size());
    const std::string part = given.substr(start, end - start);
    const std::size_t dash = part.find('-', 1);
    const T first = number<T>(name, part.substr(0, dash));
    const T last = dash == std::string::npos ? first : number<T>(name, part.substr(dash + 1));
    if (last < first || last - first >= MOST) {
      refuse_range(name, part);
    }
    for (T offset = 0; offset <= last - first; offset++) {
      list.push_back(first + offset);
    }
    start = end + 1;
  }
}

using Action = std::function<void(const std::string& name, const std::string& value)>;

Action into(std::string& place) {
  return [&place](const std::string&, const std::string& value) { place = value; };
}

Action one_of(std::string& place, std::vector<std::string> words) {
  return [&place, words = std::move(words)](const std::string& name, const std::string& value) {
    if (std::find(words.begin(), words.end(), value) == words.end()) {
      std::string known = words.front();
      std::for_each(words.begin() + 1, words.end(), [&](const std::string& word) { known += ", " + word; });
      throw UsageError(name + ": '" + value + "' is not one of " + known);
    }
    place = value;
  };
}

std::map<std::string, Action> valued_options(Command& c) {
  const auto real = [](arforge::Setting<double>& place) {
    return [&place](const std::string& name, const std::string& value) { place = number<double>(name, value); };
  };
  const auto count = [](std::int64_t& place) {
    return
        [&place](const std::string& name, const std::string& value) { place = at_least<std::int64_t>(name, value, 1); };
  };
  return {
      {"--schedule", into(c.request.schedule)},
      {"--class", [&c](const auto& name, const auto& value) { append_numbers(name, value, c.request.classes); }},
      {"--seed", [&c](const auto& name, const auto& value) { append_numbers(name, value, c.request.seeds); }},
      {"--features", into(c.features)},
      {"--features-mask", into(c.features_mask)},
      {"--prompt-ids", [&c](const auto&, const auto& value) { c.prompt_ids.push_back(value); }},
      {"--prompt-ids-mask", into(c.prompt_ids_mask)},
      {"--negative-ids", into(c.negative_ids)},
      {"--unconditional", one_of(c.request.unconditional, {"padded", "image", "negative"})},
      {"--prefill", one_of(c.request.prefill, {"causal", "bidirectional"})},
      {"--samples", count(c.samples)},
      {"--guidance", real(c.request.guidance)},
      {"--temperature", real(c.request.temperature)},
      {"--top-k", [&c](const auto& name, const auto& value) { c.request.top_k = number<std::int64_t>(name, value); }},
      {"--top-p", real(c.request.top_p)},
      {"--batch", count(c.request.batch)},
      {"--target", one_of(c.open.target, {"onnxruntime", "tensorrt", "tensorrt-rtx"})},
      {"--precision", into(c.open.precision)},
      {"--provider", into(c.open.provider)},
      {"--plugin", into(c.open.plugin)},
      {"--look-every",
       [&c](const auto& name, const auto& value) { c.open.look_every = at_least<std::int64_t>(name, value, 0); }},
      {"--threads", [&c](const auto& name, const auto& value) { c.open.threads = at_least(name, value, 1); }},
      {"--output", into(c.output)},
      {"--columns", count(c.across)},
      {"--zoom", count(c.zoom)},
      {"--preview", into(c.preview)},
      {"--preview-every", count(c.preview_every)},
      {"--npz", into(c.npz)},
      {"--tokens", into(c.tokens)},
      {"--keep", into(c.keep)},
      {"--mask", into(c.mask)},
      {"--grid",
       [&c](const auto& name, const auto& value) {
         const std::size_t cross = std::min(value.find('x'), value.size());
         c.rows = at_least<std::int64_t>(name, value.substr(0, cross), 1);
         c.columns = at_least<std::int64_t>(name, value.substr(std::min(cross + 1, value.size())), 1);
       }},
      {"--timings", into(c.timings)},
      {"--profile", into(c.profile)},
      {"--warm-ups",
       [&c](const auto& name, const auto& value) { c.profiling.warm_ups = at_least<std::int64_t>(name, value, 0); }},
      {"--repeats", count(c.profiling.repeats)},
      {"--sysfs", [&c](const auto&, const auto& value) { c.profiling.sysfs = value; }},
  };
}

// Repeats a list, from its start on, up to `samples` entries; 0: leaves it.
template <class T>
void go_round(std::vector<T>& list, std::int64_t samples) {
  const std::size_t given = list.size();
  if (given > 0 && samples > 0) {
    list.resize(static_cast<std::size_t>(samples));
  }
  for (std::size_t image = given; image < list.size(); image++) {
    list[image] = list[image - given];
  }
}

void check_together(const Command& c) {
  std::string named;
  int given = 0;
  const std::pair<const char*, bool> kinds[] = {{"--class", !c.request.classes.empty()},
                                                {"--features", !c.features.empty()},
                                                {"--prompt-ids", !c.prompt_ids.empty()}};
  for (const auto& [name, there] : kinds) {
    if (there) {
      named += (given++ > 0 ? " and " : "") + std::string(name);
    }
  }
  if (c.bundle.empty() || given == 0) {
    throw UsageError("name a BUNDLE and at least one --class, or --features, or --prompt-ids");
  }
  if (given > 1) {
    throw UsageError("say what to draw by one of " + named);
  }
  if (c.features.empty() && !c.features_mask.empty()) {
    throw UsageError("--features-mask goes with --features");
  }
  if (c.prompt_ids.size() != 1 && !c.prompt_ids_mask.empty()) {
    throw UsageError("--prompt-ids-mask goes with --prompt-ids, one of them");
  }
  if (c.output.empty() && c.npz.empty() && c.tokens.empty() && c.profile.empty()) {
    throw UsageError("nothing to write: name --output, --npz, --tokens or --profile");
  }
  if (!c.profile.empty() && !c.preview.empty()) {
    throw UsageError("--preview takes its time from what --profile measures: leave one out");
  }
  if (c.request.greedy && !c.request.temperature.values.empty() && c.request.temperature.values.front() != 0) {
    throw UsageError("--greedy is temperature 0: leave out one of --greedy and --temperature");
  }
  if (c.keep.empty() != c.mask.empty()) {
    throw UsageError("--keep names an image and --mask what of it to paint: give both");
  }
  if (c.zoom > 64) {
    throw UsageError("--zoom is 1 to 64");
  }
}

} // namespace

Command parse_command(const std::vector<std::string>& words) {
  Command c;
  const std::map<std::string, Action> valued = valued_options(c);
  const std::map<std::string, bool*> flags = {
      {"--greedy", &c.request.greedy}, {"--quiet", &c.quiet}, {"--check-hashes", &c.open.check_hashes}};
  for (std::size_t index = 0; index < words.size(); index++) {
    const std::size_t equals = words[index].rfind("--", 0) == 0 ? words[index].find('=') : std::string::npos;
    const std::string name = words[index].substr(0, equals);
    if (const auto flag = flags.find(name); flag != flags.end() && equals == std::string::npos) {
      *flag->second = true;
    } else if (const auto option = valued.find(name); option != valued.end()) {
      if (equals == std::string::npos && ++index == words.size()) {
        throw UsageError(name + " needs a value");
      }
      option->second(name, equals == std::string::npos ? words[index] : words[index].substr(equals + 1));
    } else if (name.rfind('-', 0) == 0 || !c.bundle.empty()) {
      throw UsageError("no such option: " + words[index]);
    } else {
      c.bundle = words[index];
    }
  }
  check_together(c);
  return c;
}

std::int64_t spread(arforge::Request& request, std::int64_t samples) {
  go_round(request.classes, samples);
  go_round(request.features, samples);
  go_round(request.ids, samples);
  const std::size_t images = std::max({request.classes.size(), request.features.size(), request.ids.size()});
  if (request.seeds.size() < 2) {
    request.seeds.resize(1);
    while (request.seeds.size() < images) {
      request.seeds.push_back(request.seeds.back() + 1);
    }
  }
  return static_cast<std::int64_t>(images);
}
