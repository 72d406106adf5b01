// A step graph whose rows are heads of one batch: told how many rows it may have, as bytes, before it is opened.
//
// ONNX Runtime's attention with 8-bit caches takes several tokens a row in a batch of one alone, so rows stand as heads
// beside each other, and how many heads there are is an attribute. The graph has attention for several numbers of rows,
// of which a step runs the one that it has rows for; all read the same weights. The file has numbers of one row there,
// marked by which of the numbers of rows they are for; a mark takes as many bytes as any number that replaces it, so
// nothing else of the file moves.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "backends/onnxruntime_session.h"
#include "bundle/facts.h"
#include "step_graph.h"

namespace arforge {

// The numbers of rows that a graph is opened for first, the likeliest first.
std::vector<std::int64_t> usual_rows();

// Puts a number of rows first among those that were used last, and drops the last of them where it is a new one.
void use_rows(std::int64_t rows, std::vector<std::int64_t>& used);

// The file's graph for those numbers of rows. Throws Error (engine) for a graph that is not folded for as many.
std::string folded_content(const std::filesystem::path& path, const std::vector<std::int64_t>& rows);

// The further outputs of a folded graph by cache, of caches that several layers read: later layers all read the last
// one. It is an output where it is written, and of each layer; that of the last layer is called as any cache's.
std::map<std::string, std::vector<std::string>> read_again(const ModelFacts& model);

// The types of a graph's caches, float32 for those that are not 8 bits.
std::map<std::string, Type> cache_types(const Ort::Session& session, const ModelFacts& model);

} // namespace arforge
