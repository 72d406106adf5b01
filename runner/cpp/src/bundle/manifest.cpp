// manifest.json, field by field, as `manifest.schema.json` says.
#include <algorithm>

#include "bundle/bundle.h"
#include "bundle/files.h"
#include "bundle/json.h"
#include "text.h"

namespace arforge {
namespace fs = std::filesystem;
namespace {

constexpr const char* MANIFEST = "manifest.json";
constexpr const char* FORMAT = "arforge-bundle";
constexpr std::int64_t VERSION = 2;
constexpr std::size_t MAX_NAME_LETTERS = 200;
constexpr std::int64_t MAX_LAYERS = 4096;
constexpr std::size_t MAX_IDS = 1 << 20;
constexpr std::size_t MAX_RANGES = 1 << 16; // of ids
constexpr std::size_t MAX_TEXT_LETTERS = 4000;

struct Pair {
  std::int64_t first, second;
};

Pair pair(const Fields& fields, const char* name) {
  const Json& list = fields.list(name, 2);
  if (list.size() > 2) {
    throw Error(Code::manifest, text("the manifest does not follow the format: ", fields.place(name), " must be two"));
  }
  return {whole_number(list[0], fields.place(name), 1, MAX_COUNT),
          whole_number(list[1], fields.place(name), 1, MAX_COUNT)};
}

std::vector<std::int64_t> ids(const Fields& fields, const char* name) {
  const Json& list = fields.list(name, 0);
  if (list.size() > MAX_IDS) {
    throw Error(Code::manifest,
                text("the manifest does not follow the format: ", fields.place(name), " must have at most ", MAX_IDS));
  }
  std::vector<std::int64_t> found;
  for (const Json& id : list) {
    found.push_back(whole_number(id, fields.place(name), 0, MAX_COUNT));
  }
  return found;
}

std::optional<std::int64_t> id_or_null(const Fields& fields, const char* name) {
  return fields.at(name).is_null() ? std::nullopt : std::optional<std::int64_t>(fields.whole(name, 0));
}

std::optional<std::string> string_or_null(const Fields& fields, const char* name, std::size_t most) {
  return fields.at(name).is_null() ? std::nullopt : std::optional<std::string>(fields.string(name, most));
}

std::optional<std::vector<std::string>> labels_of(const Fields& fields) {
  if (fields.at("labels").is_null()) {
    return std::nullopt;
  }
  std::vector<std::string> labels;
  for (const Json& label : fields.list("labels", 1)) {
    labels.push_back(Fields({{"label", label}}, fields.place("labels"), {"label"}).string("label"));
  }
  return labels;
}

// Ids that a user's text may not come to, each range its first and last: for callers, who have the tokenizer.
void check_ranges(const Fields& fields, const char* name) {
  const Json& list = fields.list(name, 0);
  const auto is_range = [](const Json& range) { return range.is_array() && range.size() == 2; };
  if (list.size() > MAX_RANGES || !std::all_of(list.begin(), list.end(), is_range)) {
    throw Error(Code::manifest, text("the manifest does not follow the format: ", fields.place(name),
                                     " must be at most ", MAX_RANGES, " pairs of ids"));
  }
  for (const Json& range : list) {
    for (const Json& id : range) {
      (void)whole_number(id, fields.place(name), 0, MAX_COUNT);
    }
  }
}

IdsCondition ids_condition_of(const Fields& fields) {
  (void)fields.string("before", MAX_TEXT_LETTERS, 0);
  (void)fields.string("after", MAX_TEXT_LETTERS, 0);
  (void)fields.boolean("stripped");
  check_ranges(fields, "reserved");
  return {fields.whole("slots"),   fields.whole("vocabulary"),
          ids(fields, "prefix"),   ids(fields, "suffix"),
          fields.whole("start"),   id_or_null(fields, "padding"),
          ids(fields, "negative"), fields.one_of("unconditional", {"padded", "image", "negative"})};
}

Condition condition_of(const Json& value) {
  const char* place = "model.condition";
  const Json kind = value.is_object() ? value.value("kind", Json()) : Json();
  if (kind == "class") {
    const Fields fields(value, place, {"kind", "classes", "first_class", "null_class"});
    return ClassCondition{fields.whole("classes"), fields.whole("first_class"), fields.whole("null_class")};
  }
  if (kind == "features") {
    const Fields fields(value, place, {"kind", "slots", "width", "captions"});
    return FeaturesCondition{fields.whole("slots"), fields.whole("width"), fields.one_of("captions", {"clean", "raw"})};
  }
  const Fields fields(value, place,
                      {"kind", "slots", "vocabulary", "prefix", "before", "after", "stripped", "suffix", "start",
                       "padding", "reserved", "negative", "unconditional"});
  (void)fields.one_of("kind", {"class", "features", "ids"});
  return ids_condition_of(fields);
}

ModelFacts model_of(const Json& value) {
  const Fields fields(value, "model",
                      {"family",    "variant",    "config",          "order",   "grid",   "vocabulary",
                       "dim",       "condition",  "specials",        "row_end", "labels", "source_precision",
                       "queries",   "positions",  "position_rows",   "layers",  "caches", "kv_heads",
                       "head_size", "parameters", "stored_precision"});
  (void)fields.object("config");
  (void)fields.one_of("source_precision", {"fp32", "bf16", "fp16"});
  const Pair grid = pair(fields, "grid");
  return {fields.string("family"),
          fields.one_of("order", {"raster", "regions", "random"}),
          grid.first,
          grid.second,
          fields.whole("vocabulary"),
          fields.whole("dim"),
          condition_of(fields.at("condition")),
          ids(fields, "specials"),
          id_or_null(fields, "row_end"),
          labels_of(fields),
          fields.one_of("stored_precision", {"fp32", "bf16", "fp16", "int8", "int4"}),
          fields.boolean("queries"),
          fields.one_of("positions", {"grid", "sequence"}),
          fields.whole("position_rows"),
          fields.whole("layers", 1, MAX_LAYERS),
          fields.whole("caches"),
          fields.whole("kv_heads"),
          fields.whole("head_size"),
          fields.whole("parameters", 1, INT64_MAX),
          string_or_null(fields, "variant", MAX_NAME_LETTERS)};
}

std::optional<ImageTokenizerFacts> image_tokenizer_of(const Json& value) {
  if (value.is_null()) {
    return std::nullopt;
  }
  const Fields fields(value, "image_tokenizer",
                      {"kind", "codebook_size", "codebook_width", "downsampling", "image_size"});
  (void)fields.one_of("kind", {"vq", "vision-vq"});
  (void)fields.whole("codebook_width");
  const Pair size = pair(fields, "image_size");
  return ImageTokenizerFacts{fields.whole("codebook_size"), fields.whole("downsampling"), size.first, size.second};
}

SamplerDefaults sampler_of(const Json& value) {
  const Fields fields(value, "sampler", {"kind", "guidance", "temperature", "top_k", "top_p"});
  const double top_p = fields.number("top_p", 0, 1);
  if (top_p == 0) {
    throw Error(Code::manifest, "the manifest does not follow the format: sampler.top_p must be more than 0");
  }
  return {fields.one_of("kind", {"uniform", "noise"}), fields.number("guidance", 1, 1000),
          fields.number("temperature", 0, 1000), fields.whole("top_k", 0), top_p};
}

File file_of(const Json& value, const std::string& path) {
  const Fields fields(value, "files." + path, {"bytes", "sha256"});
  std::string sha256 = fields.string("sha256", 64);
  const bool digits = sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (sha256.size() != 64 || !digits) {
    throw Error(Code::manifest,
                text("the manifest does not follow the format: files.", path, ".sha256 must be 64 hexadecimal digits"));
  }
  return {fields.whole("bytes", 0, INT64_MAX), std::move(sha256)};
}

StoredSchedule schedule_of(const Json& value) {
  const Fields fields(value, "schedules", {"specification", "path", "steps", "slots", "widths"});
  for (const Json& width : fields.list("widths", 1)) {
    (void)whole_number(width, fields.place("widths"), 1, MAX_COUNT);
  }
  return {fields.string("specification"), fields.string("path", MAX_PATH_LETTERS), fields.whole("steps"),
          fields.whole("slots")};
}

std::string precision_of(const Fields& fields) {
  return fields.one_of("precision", {"fp32", "bf16", "fp16", "int8", "int4"});
}

Graph graph_of(const Json& value) {
  const Fields fields(value, "graphs", {"name", "precision", "path", "weights"});
  return {fields.one_of("name", {"step", "step-logits", "step-noise", "condition", "text", "decoder", "encoder"}),
          precision_of(fields), fields.string("path", MAX_PATH_LETTERS), fields.string("weights", MAX_PATH_LETTERS)};
}

BuiltEngine engine_of(const Json& value) {
  const Fields fields(value, "engines", {"target", "precision", "device", "path"});
  return {fields.one_of("target", {"onnxruntime", "tensorrt", "tensorrt-rtx"}), precision_of(fields),
          fields.string("device"), fields.string("path", MAX_PATH_LETTERS)};
}

// Throws Error (format_version) for a bundle of another format; what is no version is for the fields to refuse.
void check_version(const Json& version, const std::string& name) {
  if (!version.is_number_integer() || version == VERSION || version < 1) {
    return;
  }
  if (version > VERSION) {
    throw Error(Code::format_version, text(name, " has bundle format ", version.dump(), ", this arforge reads format ",
                                           VERSION, ": update arforge, or export the bundle again with this one"));
  }
  throw Error(Code::format_version, text(name, " has bundle format ", version.dump(),
                                         ", which this arforge no longer reads: export it again"));
}

} // namespace

Bundle read_manifest(const fs::path& root) {
  const fs::path path = root / MANIFEST;
  std::error_code failed;
  const fs::file_status facts = fs::symlink_status(path, failed);
  check_permitted(path, failed);
  if (fs::is_symlink(facts)) {
    throw Error(Code::manifest, text(root.string(), " is not a bundle: it has no ", MANIFEST,
                                     " but a link of that name: ", how_to_copy(root)));
  }
  if (!fs::is_regular_file(facts)) {
    throw Error(Code::manifest, text(root.string(), " is not a bundle: it has no ", MANIFEST));
  }
  Bundle bundle = parse_manifest(read_file(path, MAX_JSON, Code::manifest), path.string());
  bundle.root = root;
  return bundle;
}

std::string manifest_content(const fs::path& root) {
  try {
    return read_file(root / MANIFEST, MAX_JSON, Code::manifest);
  } catch (const Error&) {
    return "";
  }
}

Bundle parse_manifest(const std::string& content, const std::string& name) {
  const Json manifest = parse_json(content, name, Code::manifest);
  if (!manifest.is_object() || manifest.value("format", Json()) != FORMAT) {
    throw Error(Code::manifest, text(name, " is not the manifest of an arforge bundle"));
  }
  check_version(manifest.value("version", Json()), name);
  const Fields fields(manifest, "manifest",
                      {"format", "version", "model", "image_tokenizer", "text_tokenizer", "graphs", "files",
                       "schedules", "sampler", "engines", "provenance"});
  (void)fields.whole("version", VERSION, VERSION);
  (void)fields.object("provenance");
  Bundle bundle{{},
                model_of(fields.at("model")),
                image_tokenizer_of(fields.at("image_tokenizer")),
                string_or_null(fields, "text_tokenizer", MAX_PATH_LETTERS),
                sampler_of(fields.at("sampler")),
                {},
                {},
                {},
                {}};
  for (const Json& entry : fields.list("graphs", 1)) {
    bundle.graphs.push_back(graph_of(entry));
  }
  for (const auto& [path, entry] : fields.object("files").items()) {
    bundle.files.emplace(path, file_of(entry, path));
  }
  if (bundle.files.empty()) {
    throw Error(Code::manifest, "the manifest does not follow the format: manifest.files must not be empty");
  }
  for (const Json& entry : fields.list("schedules", 1)) {
    bundle.schedules.push_back(schedule_of(entry));
  }
  for (const Json& entry : fields.list("engines", 0)) {
    bundle.engines.push_back(engine_of(entry));
  }
  return bundle;
}

} // namespace arforge
