// The schedule file: a JSON header and little-endian columns (README, "A schedule file").
#pragma once

#include <string>

#include "schedules/schedule.h"

namespace arforge {

// Reads and checks a schedule; throws Error (schedule), naming `name`, for anything that is not as written.
Schedule load_schedule(const std::string& content, const std::string& name);

} // namespace arforge
