// Whether a TensorRT engine is the one to load: for this graph, library and device; what it can do; and how to build
// the right one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backends/engine.h"
#include "bundle/tensorrt_identity.h"

namespace arforge {

// Of a bundle's engines of one target and precision, the one for this library, such as "tensorrt-rtx 1.7.1.116", and
// this GPU's compute capability, such as "8.6". Throws Error (engine) if none is, for the one that comes nearest, or if
// that was built from another graph than the bundle's.
TensorRTIdentity choose_engine(const Bundle& bundle, std::vector<TensorRTIdentity> identities,
                               const std::string& library, const std::string& compute_capability);

// The numbers of images that an engine was built for, rising; and the rows of its longest prompt.
std::vector<std::int64_t> batches_of(const TensorRTIdentity& identity);
std::int64_t longest_prompt(const TensorRTIdentity& identity);

// Whether it takes one mask for all rows.
bool has_one_mask(const Bundle& bundle, const TensorRTIdentity& identity);

EngineFacts facts_of(const Bundle& bundle, const TensorRTIdentity& identity);

// An engine as messages name it.
std::string engine_name(const Bundle& bundle, const TensorRTIdentity& identity);

// The command that builds an engine like this one.
std::string build_command(const Bundle& bundle, const TensorRTIdentity& identity);

} // namespace arforge
