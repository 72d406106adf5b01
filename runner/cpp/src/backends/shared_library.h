// Shared libraries that are loaded when they are needed, and stay.
#pragma once

#include <string>

namespace arforge {

// NULL, and why, if no library of that name or path can be loaded.
void* open_library(const std::string& name, std::string& problem);

// NULL if the library has no such function.
void* find_function(void* library, const char* name);

} // namespace arforge
