// A step graph whose rows are heads of one batch: told how many rows it has, as bytes, before it is opened.
//
// ONNX Runtime's attention with 8-bit caches takes several tokens a row in a batch of one alone, so rows stand as heads
// beside each other, and how many heads there are is an attribute. The file has heads of a row there, marked; a mark
// takes as many bytes as any number that replaces it, so nothing else of the file moves.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "backends/onnxruntime_session.h"
#include "bundle/facts.h"
#include "step_graph.h"

namespace arforge {

// The file's graph for that many rows. Throws Error (engine) for a graph that is not folded.
std::string folded_content(const std::filesystem::path& path, std::int64_t rows);

// The types of a graph's caches, float32 for those that are not 8 bits.
std::map<std::string, Type> cache_types(const Ort::Session& session, const ModelFacts& model);

} // namespace arforge
