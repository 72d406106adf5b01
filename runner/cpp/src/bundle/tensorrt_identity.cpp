#include "bundle/tensorrt_identity.h"

#include <algorithm>

#include "bundle/files.h"
#include "bundle/identity_reader.h"
#include "bundle/json.h"
#include "text.h"

namespace arforge {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t MAX_CAPABILITIES = 64;
constexpr std::size_t MAX_ATTENTION_LETTERS = 2000;
constexpr std::int64_t MAX_COPIED = std::int64_t{1} << 62; // bytes
constexpr const char* SLOTS_FIRST = "slots rows heads size";
constexpr const char* DIGITS = "0123456789";

// One identity as it is read.
struct Reader : IdentityReader {
  [[nodiscard]] std::vector<std::int64_t> counts(const Fields& fields, const char* name, std::size_t least = 0) const {
    std::vector<std::int64_t> found;
    for (const Json& entry : list(fields, name, least, MAX_ENTRIES)) {
      found.push_back(whole_number(entry, fields.place(name), 1, MAX_COUNT, document));
    }
    return found;
  }

  [[nodiscard]] std::vector<std::string> names(const Fields& fields, const char* name, std::size_t most) const {
    std::vector<std::string> found;
    for (const Json& entry : list(fields, name, 0, most)) {
      found.push_back(Fields({{"entry", entry}}, fields.place(name), {"entry"}, document).string("entry"));
    }
    return found;
  }

  // Such as "8.6": at most three digits on either side.
  [[nodiscard]] std::vector<std::string> capabilities(const Fields& fields, const char* name) const {
    std::vector<std::string> found = names(fields, name, MAX_CAPABILITIES);
    const auto is_number = [](const std::string& part) {
      return !part.empty() && part.size() <= 3 && part.find_first_not_of(DIGITS) == std::string::npos;
    };
    for (const std::string& entry : found) {
      const std::size_t point = std::min(entry.find('.'), entry.size());
      if (!is_number(entry.substr(0, point)) || !is_number(entry.substr(std::min(point + 1, entry.size())))) {
        refuse(fields.place(name), "compute capabilities such as 8.6");
      }
    }
    return found;
  }

  static std::string path(const Fields& fields, const char* name) { return fields.string(name, MAX_PATH_LETTERS); }

  [[nodiscard]] std::string sha256(const Fields& fields, const char* name) const {
    std::string found = fields.string(name, 64, 64);
    if (found.find_first_not_of("0123456789abcdef") != std::string::npos) {
      refuse(fields.place(name), "64 hexadecimal digits");
    }
    return found;
  }

  [[nodiscard]] std::vector<ShapeProfile> profiles(const Fields& fields) const {
    std::vector<ShapeProfile> found;
    for (const Json& entry : list(fields, "profiles", 1, MAX_ENTRIES)) {
      const Fields one(entry, fields.place("profiles"), {"images", "width", "queries", "condition"}, document);
      found.push_back({one.whole("images"), one.whole("width"), one.whole("queries", 0), one.whole("condition", 0)});
    }
    return found;
  }

  // What was found out about the engine when it was built.
  void check_figures(const Fields& fields) const {
    if (fields.has("copied_cache_bytes") && !fields.at("copied_cache_bytes").is_null()) {
      for (const Json& entry : list(fields, "copied_cache_bytes", 0, MAX_ENTRIES)) {
        (void)whole_number(entry, fields.place("copied_cache_bytes"), 0, MAX_COPIED, document);
      }
    }
    if (fields.has("memory")) {
      const Fields memory(fields.at("memory"), fields.place("memory"), {"weights", "activations"}, document);
      (void)memory.whole("weights", 0, INT64_MAX);
      (void)memory.whole("activations", 0, INT64_MAX);
    }
  }

  // An identity that does not say is of an engine that updates them in place.
  [[nodiscard]] bool reads_only(const Fields& fields) const {
    if (!fields.has("caches")) {
      return false;
    }
    const Fields caches(fields.at("caches"), fields.place("caches"), {"lowering", "reason"}, document);
    (void)caches.string("reason", MAX_ATTENTION_LETTERS, 0);
    return caches.one_of("lowering", {"in-place", "read-only"}) == "read-only";
  }

  [[nodiscard]] BuildWishes wishes(const Json& value) const {
    const Fields fields(value, "identity.options",
                        {"compute-capability", "schedule", "width", "prefill-width", "images", "attention"}, document,
                        {"caches", "loop", "known"});
    return {capabilities(fields, "compute-capability"),
            names(fields, "schedule", MAX_ENTRIES),
            counts(fields, "width"),
            counts(fields, "prefill-width"),
            counts(fields, "images"),
            fields.one_of("attention", {"auto", "fused", "decomposed", "view"}),
            fields.has("caches") ? fields.one_of("caches", {"auto", "in-place", "read-only"}) : "auto",
            !fields.has("loop") || fields.boolean("loop"),
            !fields.has("known") || fields.boolean("known")};
  }

  [[nodiscard]] TensorRTIdentity identity(const Json& value) const {
    const Fields fields(value, "identity",
                        {"target", "precision",    "device",         "library",        "compute_capabilities",
                         "graph",  "graph_sha256", "weights",        "weights_sha256", "lowered",
                         "engine", "decoder",      "layers",         "timing_cache",   "decoder_reason",
                         "types",  "tf32",         "attention",      "filters",        "strip_weights",
                         "slots",  "widths",       "prefill_widths", "profiles",       "options"},
                        document,
                        {"cache_order", "copied_cache_bytes", "memory", "caches", "own_mask", "loop", "loop_graph",
                         "loop_layers", "loop_reason", "loop_inputs", "loop_profiles", "table", "table_graph",
                         "table_layers", "table_reason", "table_sizes", "table_profiles"});
    (void)fields.string("device");
    (void)fields.boolean("tf32");
    (void)optional(fields, "layers");
    (void)optional(fields, "timing_cache");
    (void)optional(fields, "decoder_reason", MAX_REASON_LETTERS, 0);
    check_figures(fields);
    const Fields attention(fields.at("attention"), fields.place("attention"), {"lowering", "reason"}, document);
    (void)attention.one_of("lowering", {"fused", "decomposed", "view"});
    (void)attention.string("reason", MAX_ATTENTION_LETTERS, 0);
    const std::string types = fields.one_of("types", {"float", "half", "bfloat16"});
    return {fields.one_of("target", {"tensorrt", "tensorrt-rtx"}),
            fields.one_of("precision", {"fp32", "fp16", "bf16", "int8", "int4"}),
            fields.string("library"),
            capabilities(fields, "compute_capabilities"),
            path(fields, "graph"),
            sha256(fields, "graph_sha256"),
            path(fields, "weights"),
            sha256(fields, "weights_sha256"),
            path(fields, "lowered"),
            path(fields, "engine"),
            optional(fields, "decoder"),
            types == "float"  ? Type::float32
            : types == "half" ? Type::float16
                              : Type::bfloat16,
            fields.boolean("filters"),
            fields.has("own_mask") && fields.boolean("own_mask"),
            fields.boolean("strip_weights"),
            reads_only(fields),
            fields.has("cache_order") &&
                fields.one_of("cache_order", {"rows heads slots size", SLOTS_FIRST}) == SLOTS_FIRST,
            fields.whole("slots"),
            counts(fields, "widths", 1),
            counts(fields, "prefill_widths"),
            profiles(fields),
            loop(fields),
            table(fields),
            wishes(fields.at("options"))};
  }
};

// Throws Error (engine) unless an identity is of the engine that the manifest lists, and names files of the bundle.
void check_listed(const Bundle& bundle, const BuiltEngine& engine, const Json& identity, const std::string& name) {
  const std::pair<const char*, std::string> same[] = {
      {"target", engine.target}, {"precision", engine.precision}, {"device", engine.device}};
  for (const auto& [key, listed] : same) {
    if (identity[key] != listed) {
      throw Error(Code::engine, text(name, " is for ", key, " ", identity[key].get<std::string>(),
                                     ", the manifest says ", listed, ": rebuild the engine"));
    }
  }
  for (const char* key : {"lowered", "engine", "decoder", "layers", "timing_cache", "loop", "loop_graph", "loop_layers",
                          "table", "table_graph", "table_layers"}) {
    const Json path = identity.value(key, Json());
    if (path.is_string() && bundle.files.count(path.get<std::string>()) == 0) {
      throw Error(Code::engine, text(name, ": ", key, " '", path.get<std::string>(),
                                     "' is not listed among the bundle's files: rebuild the engine"));
    }
  }
}

} // namespace

TensorRTIdentity parse_tensorrt_identity(const std::string& content, const std::string& name) {
  return Reader{{{name, Code::engine}}}.identity(parse_json(content, name, Code::engine));
}

std::vector<TensorRTIdentity> find_tensorrt_engines(const Bundle& bundle, const std::string& target,
                                                    const std::string& precision) {
  std::vector<TensorRTIdentity> found;
  for (const BuiltEngine& engine : bundle.engines) {
    if (engine.target == target && engine.precision == precision) {
      const fs::path path = bundle.root / fs::u8path(engine.path);
      const std::string name = path.string();
      const Json identity = parse_json(read_file(path, MAX_JSON, Code::engine), name, Code::engine);
      found.push_back(Reader{{{name, Code::engine}}}.identity(identity));
      check_listed(bundle, engine, identity, name);
    }
  }
  if (found.empty()) {
    refuse_unbuilt(bundle, target, precision);
  }
  return found;
}

} // namespace arforge
