// The identity of an engine, `engine-HASH.json`: what it was made from, by what, for what.
#include <algorithm>

#include "bundle/bundle.h"
#include "bundle/files.h"
#include "bundle/json.h"
#include "text.h"

namespace arforge {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t MAX_NAME_BYTES = 800; // 200 letters
constexpr std::size_t MAX_WIDTHS = 4096;
constexpr std::int64_t MAX_WIDTH = 1 << 30;
constexpr std::size_t MAX_WINDOWS = 64;
constexpr double MAX_MEASURED = 1e9; // calls, or times of next-token decoding's

// The bundle's path of one of an identity's graphs; throws Error (engine) unless it is the one of then.
std::string graph_of(const Bundle& bundle, const Json& identity, const std::string& part) {
  const Json path = identity.value(part, Json());
  const auto file = path.is_string() ? bundle.files.find(path.get<std::string>()) : bundle.files.end();
  if (file == bundle.files.end() || identity.value(part + "_sha256", Json()) != file->second.sha256) {
    throw Error(Code::engine, text("the engine of ", bundle.root.string(),
                                   " was built from another graph: rebuild it "
                                   "with `arforge build ",
                                   quoted(bundle.root.string()), " --target onnxruntime`"));
  }
  return file->first;
}

// What was measured of running ahead on drafts. Engines that were built before say nothing of batches: one image.
std::vector<MeasuredWindow> windows_of(const Json& identity, const Document& document) {
  const Json list = identity.value("jacobi", Json::array());
  if (!list.is_array() || list.size() > MAX_WINDOWS) {
    throw Error(document.code, text(document.name, " does not follow the format: jacobi must be a list of at most ",
                                    MAX_WINDOWS, ": rebuild the engine"));
  }
  std::vector<MeasuredWindow> found;
  for (const Json& entry : list) {
    const Fields one(entry, "jacobi", {"inputs", "calls", "time"}, document, {"images"});
    (void)one.number("calls", 0, MAX_MEASURED);
    found.push_back(
        {one.has("images") ? one.whole("images") : 1, one.whole("inputs", 2), one.number("time", 0, MAX_MEASURED)});
  }
  return found;
}

std::int64_t width_of(const Json& identity, const char* name, const std::string& path) {
  const Json width = identity.value(name, Json());
  if (!width.is_number_integer() || width < 1 || width > MAX_WIDTH) {
    throw Error(Code::engine, text(path, " has ", name, " ", width.dump(), ": rebuild the engine"));
  }
  return width.get<std::int64_t>();
}

// What else there may be of graphs, and of the steps that they are for.
void read_graphs(const Bundle& bundle, const Json& identity, const std::string& path, EngineIdentity& result) {
  const auto path_of = [&](const char* name) { return bundle.root / fs::u8path(graph_of(bundle, identity, name)); };
  if (identity.contains("exact_width")) {
    result.exact_width = width_of(identity, "exact_width", path);
  }
  if (identity.contains("cache_graph") || identity.contains("cache_width")) {
    result.cache_graph = path_of("cache_graph");
    result.cache_width = width_of(identity, "cache_width", path);
  }
  if (identity.contains("own_graph") || identity.contains("own_graph_sha256")) {
    result.own_graph = path_of("own_graph");
  }
}

} // namespace

EngineIdentity read_identity(const Bundle& bundle, const BuiltEngine& engine) {
  const fs::path path = bundle.root / fs::u8path(engine.path);
  const Json identity = parse_json(read_file(path, MAX_JSON, Code::engine), path.string(), Code::engine);
  const auto refuse = [&](const std::string& problem) {
    throw Error(Code::engine, text(engine.path, " ", problem, ": rebuild the engine"));
  };
  if (!identity.is_object()) {
    refuse("is not an engine identity");
  }
  const std::pair<const char*, std::string> same[] = {
      {"target", engine.target}, {"precision", engine.precision}, {"device", engine.device}};
  for (const auto& [name, expected] : same) {
    if (identity.value(name, Json()) != expected) {
      refuse(text("is for another ", name, " than ", expected));
    }
  }
  for (const char* name : {"library", "machine"}) {
    const Json value = identity.value(name, Json());
    if (!value.is_string() || value.get<std::string>().empty() || value.get<std::string>().size() > MAX_NAME_BYTES) {
      refuse(text("lacks its ", name));
    }
  }
  EngineIdentity result{bundle.root / fs::u8path(graph_of(bundle, identity, "graph")), {}, {}, 0, {}, 0, {}};
  result.standard = result.graph;
  if (identity.contains("source") || identity.contains("source_sha256")) { // of an engine with a graph of its own
    result.standard = bundle.root / fs::u8path(graph_of(bundle, identity, "source"));
  }
  if (identity.contains("weights")) {
    const Json& weights = identity["weights"];
    if (!weights.is_string() || bundle.files.count(weights.get<std::string>()) == 0) {
      refuse("names weights that are not listed among the bundle's files");
    }
    result.standard.clear();
  }
  read_graphs(bundle, identity, engine.path, result);
  result.jacobi = windows_of(identity, {engine.path, Code::engine});
  if (!identity.contains("widths")) {
    refuse("lacks its widths");
  }
  const Json& widths = identity["widths"];
  if (widths.is_null()) {
    return result;
  }
  const bool sound = widths.is_array() && !widths.empty() && widths.size() <= MAX_WIDTHS &&
                     std::all_of(widths.begin(), widths.end(), [&](const Json& w) {
                       return w.is_number_integer() && w > 0 && w <= bundle.model.position_rows;
                     });
  if (!sound) {
    refuse(text("lists widths ", widths.dump()));
  }
  result.widths = widths.get<std::vector<std::int64_t>>();
  const std::int64_t widest = *std::max_element(result.widths.begin(), result.widths.end());
  const auto too_wide = [&](const MeasuredWindow& window) { return window.inputs > widest; };
  result.jacobi.erase(std::remove_if(result.jacobi.begin(), result.jacobi.end(), too_wide), result.jacobi.end());
  return result;
}

} // namespace arforge
