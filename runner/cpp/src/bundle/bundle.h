// An open bundle: facts of the model and where its files are. Nothing of it is used before it is checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "schedules/schedule.h"

namespace arforge {

// Ids: image tokens [0, vocabulary); the others where the fields say.
struct Model {
  std::string family;
  std::int64_t rows, columns; // of the grid
  std::int64_t vocabulary;
  std::int64_t classes;
  std::int64_t first_class, null_class;
  std::int64_t first_special;
  std::int64_t specials;  // learned tokens that schedules feed by index
  bool queries;           // the step graph takes the cells to decide as `query_positions`
  std::int64_t positions; // rows of the rotary table
  std::int64_t layers;
  std::int64_t caches; // pairs of key and value caches
  std::int64_t kv_heads, head_size;

  [[nodiscard]] std::int64_t cells() const { return rows * columns; }
};

struct Tokenizer {
  std::int64_t codebook_size;
  std::int64_t downsampling;  // pixels a token, a side
  std::int64_t height, width; // of the model's images
};

// Defaults of a request.
struct Sampler {
  double guidance, temperature;
  std::int64_t top_k;
  double top_p;
};

struct File {
  std::int64_t bytes;
  std::string sha256;
};

struct Graph {
  std::string name, precision; // such as "step", "fp32"
  std::string path, weights;
};

struct StoredSchedule {
  std::string specification, path;
  std::int64_t steps, slots;
};

struct BuiltEngine {
  std::string target, precision, device;
  std::string path; // of its identity
};

struct Bundle {
  std::filesystem::path root;
  Model model;
  std::optional<Tokenizer> tokenizer;
  Sampler sampler;
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
};

// Reads manifest.json; throws Error (manifest, format_version). Files are not looked at.
Bundle read_manifest(const std::filesystem::path& root);

// The manifest of that content; `name` is for messages.
Bundle parse_manifest(const std::string& content, const std::string& name);

// The identity that `arforge build` wrote; throws Error (manifest, engine).
EngineIdentity read_identity(const Bundle& bundle, const BuiltEngine& engine);

// Opens and checks a bundle; throws Error whose code names the way in which it is wrong.
Bundle open_bundle(const std::filesystem::path& root);

// Compares every file with its sha256; throws Error (hash) for the first that differs.
void check_hashes(const Bundle& bundle);

// The ONNX file of a graph; throws Error (bundle) where the bundle lacks it.
std::filesystem::path graph_path(const Bundle& bundle, const std::string& name, const std::string& precision);

// The engine of that precision, checked against the bundle; throws Error (engine).
EngineIdentity find_engine(const Bundle& bundle, const std::string& precision);

// The stored schedule of that specification, else one compiled for the grid and the kept cells; throws Error
// (schedule).
Schedule find_schedule(const Bundle& bundle, const std::string& specification, const std::vector<std::int32_t>& kept);

} // namespace arforge
