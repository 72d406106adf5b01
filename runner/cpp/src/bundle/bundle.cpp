#include "bundle/bundle.h"

#include <algorithm>

#include "bundle/files.h"
#include "schedules/file.h"
#include "schedules/specification.h"
#include "text.h"

namespace arforge {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t MAX_SCHEDULE = 1 << 26; // bytes

void check_listed(const Bundle& bundle, const std::string& path) {
  if (bundle.files.count(path) == 0) {
    throw Error(Code::manifest, text(bundle.root.string(), ": ", path, " is used but not listed among the files"));
  }
}

void check_ids(const Bundle& bundle) {
  const ModelFacts& model = bundle.model;
  const std::string root = bundle.root.string();
  std::int64_t largest = model.vocabulary - 1;
  if (const auto* condition = std::get_if<ClassCondition>(&model.condition)) {
    if (largest >= condition->first_class || condition->first_class + condition->classes - 1 >= condition->null_class) {
      throw Error(Code::manifest, text(root, ": class ids overlap image tokens or the null class"));
    }
    if (model.labels && static_cast<std::int64_t>(model.labels->size()) != condition->classes) {
      throw Error(Code::manifest,
                  text(root, ": ", model.labels->size(), " labels for ", condition->classes, " classes"));
    }
    largest = condition->null_class;
  } else if (model.labels) {
    throw Error(Code::manifest, text(root, ": labels, and no classes"));
  }
  std::vector<std::int64_t> specials = model.specials;
  std::sort(specials.begin(), specials.end());
  if (!specials.empty() &&
      (specials.front() <= largest || std::adjacent_find(specials.begin(), specials.end()) != specials.end())) {
    throw Error(Code::manifest, text(root, ": special tokens overlap image tokens, the classes, or each other"));
  }
  if (model.row_end && *model.row_end >= static_cast<std::int64_t>(specials.size())) {
    throw Error(Code::manifest, text(root, ": row_end ", *model.row_end, " of ", specials.size(), " special tokens"));
  }
}

void check_image_tokenizer(const ImageTokenizerFacts& tokenizer, const ModelFacts& model, const std::string& root) {
  if (tokenizer.codebook_size != model.vocabulary) {
    throw Error(Code::manifest, text(root, ": image tokenizer has ", tokenizer.codebook_size, " codes, the model ",
                                     model.vocabulary, " tokens"));
  }
  const std::int64_t height = model.rows * tokenizer.downsampling;
  const std::int64_t width = model.columns * tokenizer.downsampling;
  if (tokenizer.height != height || tokenizer.width != width) {
    throw Error(Code::manifest, text(root, ": image size (", tokenizer.height, ", ", tokenizer.width,
                                     "), the grid makes (", height, ", ", width, ")"));
  }
}

void check_model(const Bundle& bundle) {
  const ModelFacts& model = bundle.model;
  const std::string root = bundle.root.string();
  if (model.caches > model.layers) {
    throw Error(Code::manifest, text(root, ": ", model.caches, " caches for ", model.layers, " layers"));
  }
  if (model.positions == "grid" && model.position_rows < 1 + model.cells()) {
    throw Error(Code::manifest, text(root, ": ", model.position_rows, " positions for ", model.cells(), " cells"));
  }
  check_ids(bundle);
  if (bundle.image_tokenizer) {
    check_image_tokenizer(*bundle.image_tokenizer, model, root);
  }
}

// Throws Error (format_version) for what the format has and this version of arforge does not run yet.
void check_runnable(const Bundle& bundle) {
  const ModelFacts& model = bundle.model;
  const std::pair<bool, std::string> parts[] = {
      {std::holds_alternative<IdsCondition>(model.condition), text("prompts (", kind_of(model.condition), ")")},
      {model.positions == "sequence", "positions in sequence"},
      {model.row_end.has_value(), "special tokens at the end of rows"},
      {bundle.sampler.kind == "noise", "a sampler of noise"},
  };
  for (const auto& [asked, what] : parts) {
    if (asked) {
      throw Error(Code::format_version,
                  text(bundle.root.string(), " needs ", what, ", which this arforge does not run yet: update arforge"));
    }
  }
}

Schedule stored_schedule(const Bundle& bundle, const StoredSchedule& entry) {
  const std::string content = read_file(bundle.root / fs::u8path(entry.path), MAX_SCHEDULE, Code::schedule);
  Schedule schedule = load_schedule(content, entry.path);
  const bool same =
      schedule.specification == entry.specification && schedule.rows == bundle.model.rows &&
      schedule.columns == bundle.model.columns && static_cast<std::int64_t>(schedule.steps.size()) == entry.steps &&
      slots_of(schedule) == entry.slots && schedule.queries == bundle.model.queries && schedule.kept.empty();
  if (!same) {
    throw Error(Code::schedule, text(entry.path, " holds ", schedule.specification, " of ", schedule.rows, "x",
                                     schedule.columns, ", ", schedule.steps.size(), " steps, ", slots_of(schedule),
                                     " slots; the manifest says otherwise: export again"));
  }
  return schedule;
}

std::string hint(const Bundle& bundle, const std::string& name) {
  if (name == "encoder" && bundle.image_tokenizer) {
    return "its image tokenizer only decodes; export it with one that has its encoder to read images";
  }
  const bool image = name == "decoder" || name == "encoder";
  return image ? "export it with --tokenizer FILE to get images" : "export it again";
}

} // namespace

Bundle open_bundle(const fs::path& root) {
  std::error_code failed;
  const bool folder = fs::is_directory(root, failed);
  check_permitted(root, failed);
  if (!folder) {
    throw Error(Code::bundle, text("no bundle at ", root.string(), ": make one with `arforge export`"));
  }
  Bundle bundle = read_manifest(root);
  std::vector<std::string> paths;
  paths.reserve(bundle.files.size());
  for (const auto& [path, facts] : bundle.files) {
    paths.push_back(path);
  }
  check_distinct(paths);
  for (const auto& [path, facts] : bundle.files) {
    check_file(root, path, facts.bytes);
  }
  for (const Graph& graph : bundle.graphs) {
    check_listed(bundle, graph.path);
    check_listed(bundle, graph.weights);
  }
  for (const StoredSchedule& schedule : bundle.schedules) {
    check_listed(bundle, schedule.path);
  }
  for (const BuiltEngine& engine : bundle.engines) {
    check_listed(bundle, engine.path);
  }
  if (bundle.text_tokenizer) {
    check_listed(bundle, *bundle.text_tokenizer);
  }
  check_model(bundle);
  check_runnable(bundle);
  return bundle;
}

void check_hashes(const Bundle& bundle) {
  for (const auto& [path, facts] : bundle.files) {
    const fs::path place = bundle.root / fs::u8path(path);
    const std::string found = sha256_of(place);
    if (found != facts.sha256) {
      throw Error(Code::hash, text(place.string(), " is damaged: sha256 ", found, ", the manifest says ", facts.sha256,
                                   ". Export the bundle again"));
    }
  }
}

fs::path graph_path(const Bundle& bundle, const std::string& name, const std::string& precision) {
  for (const Graph& graph : bundle.graphs) {
    if (graph.name == name && graph.precision == precision) {
      return bundle.root / fs::u8path(graph.path);
    }
  }
  throw Error(Code::bundle,
              text(bundle.root.string(), " has no ", precision, " graph '", name, "': ", hint(bundle, name)));
}

EngineIdentity find_engine(const Bundle& bundle, const std::string& precision) {
  std::vector<std::string> built;
  for (const BuiltEngine& engine : bundle.engines) {
    if (engine.target == "onnxruntime" && engine.precision == precision) {
      return read_identity(bundle, engine);
    }
    built.push_back(engine.target + " " + engine.precision);
  }
  throw Error(Code::engine, text(bundle.root.string(), " has no onnxruntime ", precision,
                                 " engine (built: ", listed(built), "). Build it: arforge build ",
                                 quoted(bundle.root.string()), " --target onnxruntime --precision ", precision));
}

Facts facts_of(const Bundle& bundle) {
  const ModelFacts& model = bundle.model;
  const auto* classes = std::get_if<ClassCondition>(&model.condition);
  const FeaturesCondition* features = features_condition(model);
  Facts facts;
  facts.family = model.family;
  facts.order = model.order;
  facts.classes = classes != nullptr ? classes->classes : 0;
  facts.labels = model.labels.value_or(std::vector<std::string>());
  facts.feature_slots = features != nullptr ? features->slots : 0;
  facts.feature_width = features != nullptr ? features->width : 0;
  facts.rows = model.rows;
  facts.columns = model.columns;
  facts.vocabulary = model.vocabulary;
  facts.downsampling = bundle.image_tokenizer ? bundle.image_tokenizer->downsampling : 0;
  for (const StoredSchedule& schedule : bundle.schedules) {
    facts.schedules.push_back(schedule.specification);
  }
  facts.guidance = bundle.sampler.guidance;
  facts.temperature = bundle.sampler.temperature;
  facts.top_p = bundle.sampler.top_p;
  facts.top_k = bundle.sampler.top_k;
  return facts;
}

Schedule find_schedule(const Bundle& bundle, const std::string& specification, const std::vector<std::int32_t>& kept) {
  const ModelFacts& model = bundle.model;
  const Specification parsed = parse_specification(specification);
  require_order(parsed, specification, model.order);
  const std::string canonical = canonical_text(parsed);
  if (kept.empty()) {
    for (const StoredSchedule& entry : bundle.schedules) {
      if (entry.specification == canonical) {
        Schedule schedule = stored_schedule(bundle, entry);
        require_specials(schedule, static_cast<std::int64_t>(model.specials.size()));
        return schedule;
      }
    }
  }
  Schedule schedule = compile_schedule(parsed, model.rows, model.columns, kept);
  require_specials(schedule, static_cast<std::int64_t>(model.specials.size()));
  return schedule;
}

} // namespace arforge
