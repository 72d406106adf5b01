// Where the milliseconds and joules of a generation go: what `arforge profile --json` writes, of one schedule.
//
//   arforge::Profile profile = arforge::profile(runner, request);
//   std::ofstream("profile.json") << profile.json;
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "arforge.hpp"

namespace arforge {

struct ProfileSettings {
  std::int64_t warm_ups = 1, repeats = 3; // generations that are not counted, and those that are
  double load_seconds = 0;                // that opening took, to be noted
  std::filesystem::path sysfs = "/sys";   // where power, clocks and temperatures are read
};

struct Profile {
  std::string json; // `arforge profile --read FILE` shows it
  Result result;    // of the last generation
};

// Generates the images of a request again and again, all of them together, and looks at the machine's sensors
// meanwhile. Of the request's functions only `progress` is called. Throws Error as Runner::generate does, and Error
// (request) for settings out of range, for more images than a batch, and for tokens that stay.
ARFORGE_API Profile profile(Runner& runner, const Request& request, const ProfileSettings& settings = {});

} // namespace arforge
