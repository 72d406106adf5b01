#include "bundle/bundle.h"

#include "arforge.hpp"
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

void check_model(const Bundle& bundle) {
  const Model& model = bundle.model;
  const std::string root = bundle.root.string();
  if (model.positions < 1 + model.cells()) {
    throw Error(Code::manifest, text(root, ": ", model.positions, " positions for ", model.cells(), " cells"));
  }
  if (model.vocabulary > model.first_class || model.first_class + model.classes - 1 >= model.null_class) {
    throw Error(Code::manifest, text(root, ": class ids overlap image tokens or the null class"));
  }
  if (model.specials > 0 && model.first_special <= model.null_class) {
    throw Error(Code::manifest, text(root, ": special tokens overlap the classes"));
  }
  if (model.caches > model.layers) {
    throw Error(Code::manifest, text(root, ": ", model.caches, " caches for ", model.layers, " layers"));
  }
  if (!bundle.tokenizer) {
    return;
  }
  const Tokenizer& tokenizer = *bundle.tokenizer;
  if (tokenizer.codebook_size != model.vocabulary) {
    throw Error(Code::manifest, text(root, ": tokenizer has ", tokenizer.codebook_size, " codes, the model ",
                                     model.vocabulary, " tokens"));
  }
  const std::int64_t height = model.rows * tokenizer.downsampling;
  const std::int64_t width = model.columns * tokenizer.downsampling;
  if (tokenizer.height != height || tokenizer.width != width) {
    throw Error(Code::manifest, text(root, ": image size (", tokenizer.height, ", ", tokenizer.width,
                                     "), the grid makes (", height, ", ", width, ")"));
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

} // namespace

Bundle open_bundle(const fs::path& root) {
  std::error_code failed;
  if (!fs::is_directory(root, failed)) {
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
  check_model(bundle);
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
  const bool image = name == "decoder" || name == "encoder";
  throw Error(Code::bundle, text(bundle.root.string(), " has no ", precision, " graph '", name,
                                 "': ", image ? "export it with --tokenizer FILE to get images" : "export it again"));
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
                                 " engine (built: ", listed(built), "). Build it: arforge build ", bundle.root.string(),
                                 " --target onnxruntime --precision ", precision));
}

Schedule find_schedule(const Bundle& bundle, const std::string& specification, const std::vector<std::int32_t>& kept) {
  const Model& model = bundle.model;
  const Specification parsed = parse_specification(specification);
  require_decoder(parsed, specification, model.family);
  const std::string canonical = canonical_text(parsed);
  if (kept.empty()) {
    for (const StoredSchedule& entry : bundle.schedules) {
      if (entry.specification == canonical) {
        Schedule schedule = stored_schedule(bundle, entry);
        require_specials(schedule, model.specials);
        return schedule;
      }
    }
  }
  Schedule schedule = compile_schedule(parsed, model.rows, model.columns, kept);
  require_specials(schedule, model.specials);
  return schedule;
}

} // namespace arforge
