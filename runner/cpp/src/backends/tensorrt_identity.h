// Whether a TensorRT engine is the one to load: for this graph, library and device; and how to build the right one.
#pragma once

#include <string>
#include <vector>

#include "bundle/tensorrt_identity.h"

namespace arforge {

// Of a bundle's engines of one target and precision, the one for this library, such as "tensorrt-rtx 1.7.1.116", and
// this GPU's compute capability, such as "8.6". Throws Error (engine) if none is, for the one that comes nearest, or if
// that was built from another graph than the bundle's.
TensorRTIdentity choose_engine(const Bundle& bundle, std::vector<TensorRTIdentity> identities,
                               const std::string& library, const std::string& compute_capability);

// The numbers of images that an engine was built for, rising.
std::vector<std::int64_t> batches_of(const TensorRTIdentity& identity);

// The longest prompt that it reads, in rows before its last.
std::int64_t longest_prompt(const TensorRTIdentity& identity);

// An engine as messages name it.
std::string engine_name(const Bundle& bundle, const TensorRTIdentity& identity);

// The command that builds an engine like this one.
std::string build_command(const Bundle& bundle, const TensorRTIdentity& identity);

} // namespace arforge
