// The command line of arforge-run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "arforge.hpp"
#include "arforge_profile.hpp"

struct Command {
  std::string bundle;
  arforge::Options open;
  arforge::Request request;
  std::string features, features_mask; // files; empty: not given
  std::vector<std::string> prompt_ids;
  std::string prompt_ids_mask, negative_ids;
  std::string output, preview, npz, tokens, keep, mask, timings; // files; empty: not asked for
  std::string profile;                                           // likewise
  arforge::ProfileSettings profiling;
  std::int64_t samples = 0;           // images in all; 0: one a class, or one a prompt
  std::int64_t rows = 0, columns = 0; // of a larger grid; 0: the model's
  std::int64_t across = 0;            // images a row of the page; 0: nearly square
  std::int64_t zoom = 1;
  std::int64_t preview_every = 16; // steps
  bool quiet = false;
};

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

extern const char* const USAGE;

// Throws UsageError for what is no option, lacks its value, or does not fit together.
Command parse_command(const std::vector<std::string>& words);

// The class or prompt of each image, going round, and its seed, counting up from the only one. `samples` 0: as many as
// are given. Returns how many images that makes.
std::int64_t spread(arforge::Request& request, std::int64_t samples);
