#include "bundle/bundle.h"

#include <algorithm>

#include "bundle/consistency.h"
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
  if (const std::string problem = contradiction(bundle.model, bundle.image_tokenizer); !problem.empty()) {
    throw Error(Code::manifest, text(root.string(), ": ", problem));
  }
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

const Graph* find_graph(const Bundle& bundle, const std::string& name) {
  const auto found =
      std::find_if(bundle.graphs.begin(), bundle.graphs.end(), [&](const Graph& graph) { return graph.name == name; });
  return found == bundle.graphs.end() ? nullptr : &*found;
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

std::string default_precision(const Bundle& bundle, const std::string& target) {
  const std::string& stored = bundle.model.stored_precision;
  if (target == "onnxruntime") {
    return stored == "int8" || stored == "int4" ? stored : "fp32";
  }
  if (target == "tensorrt" || target == "tensorrt-rtx") {
    return stored == "int4" ? stored : "fp16";
  }
  throw Error(Code::engine,
              text("unknown target '", target, "': this arforge runs onnxruntime, tensorrt-rtx, tensorrt"));
}

void refuse_unbuilt(const Bundle& bundle, const std::string& target, const std::string& precision) {
  std::vector<std::string> built;
  built.reserve(bundle.engines.size());
  for (const BuiltEngine& engine : bundle.engines) {
    built.push_back(engine.target + " " + engine.precision);
  }
  throw Error(Code::engine, text(bundle.root.string(), " has no ", target, " ", precision, " engine (built: ",
                                 listed(built), "). Build it: arforge build ", quoted(bundle.root.string()),
                                 " --target ", target, " --precision ", quoted(precision)));
}

EngineIdentity find_engine(const Bundle& bundle, const std::string& precision) {
  for (const BuiltEngine& engine : bundle.engines) {
    if (engine.target == "onnxruntime" && engine.precision == precision) {
      return read_identity(bundle, engine);
    }
  }
  refuse_unbuilt(bundle, "onnxruntime", precision);
}

Facts facts_of(const Bundle& bundle, const Options& options) {
  const ModelFacts& model = bundle.model;
  const auto* classes = std::get_if<ClassCondition>(&model.condition);
  const FeaturesCondition* features = features_condition(model);
  const IdsCondition* own = ids_condition(model);
  Facts facts;
  facts.target = options.target;
  facts.precision = options.precision;
  facts.provider = options.provider;
  facts.threads = options.threads;
  facts.family = model.family;
  facts.order = model.order;
  facts.classes = classes != nullptr ? classes->classes : 0;
  facts.labels = model.labels.value_or(std::vector<std::string>());
  facts.feature_slots = features != nullptr ? features->slots : 0;
  facts.feature_width = features != nullptr ? features->width : 0;
  facts.id_slots = own != nullptr || find_graph(bundle, "text") != nullptr ? model.prompt_limit() : 0;
  facts.id_vocabulary = own != nullptr ? own->vocabulary : 0;
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
  const auto stored = std::find_if(bundle.schedules.begin(), bundle.schedules.end(), [&](const StoredSchedule& entry) {
    return kept.empty() && entry.specification == canonical;
  });
  Schedule schedule = stored != bundle.schedules.end()
                          ? stored_schedule(bundle, *stored)
                          : compile_schedule(parsed, model.rows, model.columns, kept, model.row_end);
  require_specials(schedule, static_cast<std::int64_t>(model.specials.size()), model.row_end);
  if (const std::int64_t last = last_position_of(schedule); last > model.last_position()) {
    throw Error(Code::schedule, text("schedule ", canonical, " has position ", last, ", the model ",
                                     model.last_position(), " at most: export again"));
  }
  return schedule;
}

} // namespace arforge
