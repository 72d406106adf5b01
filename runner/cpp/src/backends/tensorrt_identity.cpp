#include "backends/tensorrt_identity.h"

#include <algorithm>
#include <utility>

#include "text.h"

namespace arforge {
namespace {

constexpr const char* RTX_DEFAULT = "8.6"; // the least that TensorRT-RTX builds for where nothing else is asked

// "12.0" as numbers, of which the first counts most.
std::pair<int, int> capability_number(const std::string& compute_capability) {
  const std::size_t point = compute_capability.find('.');
  return {std::stoi(compute_capability.substr(0, point)), std::stoi(compute_capability.substr(point + 1))};
}

bool runs_on(const TensorRTIdentity& identity, const std::string& compute_capability) {
  const std::vector<std::string>& listed = identity.compute_capabilities;
  return listed.empty() ? capability_number(compute_capability) >= capability_number(RTX_DEFAULT)
                        : std::find(listed.begin(), listed.end(), compute_capability) != listed.end();
}

std::string devices(const TensorRTIdentity& identity) {
  return identity.compute_capabilities.empty() ? text("compute capability ", RTX_DEFAULT, " and later")
                                               : text("compute capability ", listed(identity.compute_capabilities));
}

// Whether two names of libraries are of one version; what one of them does not say counts for nothing.
bool same_library(const std::string& one, const std::string& other) {
  const std::string& shorter = one.size() < other.size() ? one : other;
  const std::string& longer = one.size() < other.size() ? other : one;
  const bool whole = longer.size() == shorter.size() || longer[shorter.size()] == '.';
  return whole && longer.compare(0, shorter.size(), shorter) == 0;
}

void check_identity(const Bundle& bundle, const TensorRTIdentity& identity, const std::string& library,
                    const std::string& compute_capability) {
  const std::string what = engine_name(bundle, identity);
  const auto refuse = [&](const std::string& problem) {
    throw Error(Code::engine,
                text(what, " was built ", problem, ": rebuild it with `", build_command(bundle, identity), "`"));
  };
  const auto check_source = [&](const char* other, const std::string& path, const std::string& sha256) {
    const auto file = bundle.files.find(path);
    if (file == bundle.files.end() || file->second.sha256 != sha256) {
      refuse(text("from ", other, " than the bundle's ", path));
    }
  };
  check_source("another graph", identity.graph, identity.graph_sha256);
  check_source("other weights", identity.weights, identity.weights_sha256);
  if (!same_library(library, identity.library)) {
    refuse(text("by ", identity.library, ", here is ", library));
  }
  if (!runs_on(identity, compute_capability)) {
    refuse(text("for ", devices(identity), ", here is a GPU of compute capability ", compute_capability));
  }
}

} // namespace

TensorRTIdentity choose_engine(const Bundle& bundle, std::vector<TensorRTIdentity> identities,
                               const std::string& library, const std::string& compute_capability) {
  const auto nearness = [&](const TensorRTIdentity& identity) {
    return !runs_on(identity, compute_capability) ? 0 : same_library(identity.library, library) ? 2 : 1;
  };
  const auto nearest = std::max_element(identities.begin(), identities.end(), [&](const auto& one, const auto& other) {
    return nearness(one) < nearness(other);
  });
  check_identity(bundle, *nearest, library, compute_capability);
  return std::move(*nearest);
}

std::vector<std::int64_t> batches_of(const TensorRTIdentity& identity) {
  std::vector<std::int64_t> found;
  found.reserve(identity.profiles.size());
  for (const ShapeProfile& profile : identity.profiles) {
    found.push_back(profile.images);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

std::int64_t longest_prompt(const TensorRTIdentity& identity) {
  std::int64_t longest = 0;
  for (const ShapeProfile& profile : identity.profiles) {
    longest = std::max(longest, profile.condition);
  }
  return longest;
}

bool has_one_mask(const Bundle& bundle, const TensorRTIdentity& identity) {
  return !identity.own_mask && !conditioned(bundle.model);
}

EngineFacts facts_of(const Bundle& bundle, const TensorRTIdentity& identity) {
  const bool one_mask = has_one_mask(bundle, identity) || identity.views; // which lets all rows write to one place
  return {identity.widths,   identity.prefill_widths, batches_of(identity).back(), 0, 0, one_mask,
          identity.own_mask, identity.types};
}

std::string engine_name(const Bundle& bundle, const TensorRTIdentity& identity) {
  return text("the ", identity.target, " ", identity.precision, " engine of ", bundle.root.string());
}

std::string build_command(const Bundle& bundle, const TensorRTIdentity& identity) {
  std::string command = text("arforge build ", quoted(bundle.root.string()), " --target ", identity.target,
                             " --precision ", identity.precision);
  const auto add = [&](const char* option, const auto& values) {
    for (const auto& value : values) {
      command += text(" --", option, " ", quoted(text(value)));
    }
  };
  const BuildWishes& wishes = identity.wishes;
  add("compute-capability", wishes.compute_capabilities);
  add("schedule", wishes.schedules);
  add("width", wishes.widths);
  add("prefill-width", wishes.prefill_widths);
  add("images", wishes.images);
  if (wishes.attention != "auto") {
    command += " --attention " + wishes.attention;
  }
  if (wishes.caches != "auto") {
    command += " --caches " + wishes.caches;
  }
  command += wishes.loop ? "" : " --no-loop";
  command += wishes.known ? "" : " --no-known";
  command += identity.filters ? " --filters" : " --no-filters";
  command += identity.strip_weights ? " --strip-weights" : "";
  return command;
}

} // namespace arforge
