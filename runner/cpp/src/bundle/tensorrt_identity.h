// The identity of a TensorRT engine, `engine-HASH.json`, as `tensorrt-identity.schema.json` says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "step_graph.h"
#include "table_graph.h"

namespace arforge {

// A kind of step that an engine was built for: images decoded together, tokens of a row, cells that it asks for, and
// rows of a prompt that it reads at most.
struct ShapeProfile {
  std::int64_t images, width, queries, condition;
};

// A kind of the table graph: images, and width and queries of the call that comes next.
struct TableProfile {
  std::int64_t images, width, queries;
};

// What makes several calls of a static schedule without the host.
struct TableIdentity {
  std::string engine; // a file of the bundle
  TableSizes sizes;
  std::vector<TableProfile> profiles;
};

// A kind of the loop graph: images, the width of the call that has run, and that of the one that comes next.
struct LoopProfile {
  std::int64_t images, fed, width;
};

// What makes several calls of a schedule that runs ahead on drafts without the host.
struct LoopIdentity {
  std::string engine;  // a file of the bundle
  std::int64_t inputs; // of the line
  std::vector<LoopProfile> profiles;
};

// What `arforge build` was asked for.
struct BuildWishes {
  std::vector<std::string> compute_capabilities, schedules;
  std::vector<std::int64_t> widths, prefill_widths, images;
  std::string attention, caches;
  bool loop;
  bool known; // whether it takes requests with known cells
};

struct TensorRTIdentity {
  std::string target, precision;
  std::string library;                                      // such as "tensorrt-rtx 1.7.1.116"
  std::vector<std::string> compute_capabilities;            // such as "8.6"; none: the usual one and later
  std::string graph, graph_sha256, weights, weights_sha256; // what it was made from, as it was then
  std::string lowered, engine;                              // files of the bundle
  std::optional<std::string> decoder;                       // likewise
  Type types;                                               // of caches
  bool filters, own_mask, strip_weights;
  bool read_only; // whether the engine only reads its caches, and the runner puts each step's keys and values there
  bool views;     // whether its caches lie with slots first, and attention reads them at a second address
  std::int64_t slots;
  std::vector<std::int64_t> widths, prefill_widths;
  std::vector<ShapeProfile> profiles;
  std::optional<LoopIdentity> loop;   // none: the host makes each call
  std::optional<TableIdentity> table; // likewise
  BuildWishes wishes;
};

// The identity of that content; `name` is for messages. Throws Error (engine).
TensorRTIdentity parse_tensorrt_identity(const std::string& content, const std::string& name);

// The identities of a bundle's engines of that kind, for different devices. Throws Error (engine) if none is built, or
// one is not what the manifest says, or names other files than the bundle's.
std::vector<TensorRTIdentity> find_tensorrt_engines(const Bundle& bundle, const std::string& target,
                                                    const std::string& precision);

} // namespace arforge
