// An open bundle: facts of the model and where its files are. Nothing of it is used before it is checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "arforge.hpp"
#include "bundle/facts.h"
#include "schedules/jacobi_windows.h"
#include "schedules/schedule.h"

namespace arforge {

struct Bundle {
  std::filesystem::path root;
  ModelFacts model;
  std::optional<ImageTokenizerFacts> image_tokenizer;
  std::optional<std::string> text_tokenizer; // a file of the bundle
  SamplerDefaults sampler;
  std::vector<Graph> graphs;
  std::map<std::string, File> files; // by path
  std::vector<StoredSchedule> schedules;
  std::vector<BuiltEngine> engines;
};

// What an engine runs: a graph of the bundle, with steps padded to these widths (none: any width).
struct EngineIdentity {
  std::filesystem::path graph;
  std::filesystem::path standard; // the same step in standard operators; empty where the weights are the engine's own
  std::vector<std::int64_t> widths;
  std::int64_t exact_width;          // the widest step in which a token gets the bits that it gets alone; 0: not known
  std::filesystem::path cache_graph; // one with 8-bit caches, where all rows write to the same slots; may be empty
  std::int64_t cache_width;          // of the widest steps in which that is quicker; 0: none
  std::filesystem::path own_graph;   // one for arforge's own operators; may be empty
  std::vector<MeasuredWindow> jacobi = {}; // what `build` found of running ahead on drafts
};

// Reads manifest.json; throws Error (manifest, format_version, bundle). Files are not looked at.
Bundle read_manifest(const std::filesystem::path& root);

// The bytes of manifest.json, which tell whether a bundle was replaced meanwhile; empty where it cannot be read.
std::string manifest_content(const std::filesystem::path& root);

// The manifest of that content; `name` is for messages.
Bundle parse_manifest(const std::string& content, const std::string& name);

// The identity that `arforge build` wrote; throws Error (manifest, engine).
EngineIdentity read_identity(const Bundle& bundle, const BuiltEngine& engine);

// Opens and checks a bundle; throws Error whose code names the way in which it is wrong.
Bundle open_bundle(const std::filesystem::path& root);

// Compares every file with its sha256; throws Error (hash) for the first that differs.
void check_hashes(const Bundle& bundle);

// A graph of that name, of whatever precision; NULL where there is none.
const Graph* find_graph(const Bundle& bundle, const std::string& name);

// The ONNX file of a graph; throws Error (bundle) if the bundle lacks it.
std::filesystem::path graph_path(const Bundle& bundle, const std::string& name, const std::string& precision);

// That of an engine where nobody names one: of the blocks that the bundle stores, where the target runs those, or the
// target's usual one. Throws Error (engine) for a target that is not known.
std::string default_precision(const Bundle& bundle, const std::string& target);

// Throws Error (engine): no engine of that kind is built, and how to build one.
[[noreturn]] void refuse_unbuilt(const Bundle& bundle, const std::string& target, const std::string& precision);

// The engine of ONNX Runtime of that precision, checked against the bundle; throws Error (engine).
EngineIdentity find_engine(const Bundle& bundle, const std::string& precision);

// What a caller may want to know of it, opened so.
Facts facts_of(const Bundle& bundle, const Options& options);

// The stored schedule of that specification, else one compiled for the grid and the kept cells; throws Error
// (schedule).
Schedule find_schedule(const Bundle& bundle, const std::string& specification, const std::vector<std::int32_t>& kept);

} // namespace arforge
