#include "backends/shared_library.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace arforge {

#ifdef _WIN32
void* open_library(const std::string& name, std::string& problem) {
  void* const library = LoadLibraryA(name.c_str());
  problem = library == nullptr ? name + ": error " + std::to_string(GetLastError()) : "";
  return library;
}

void* find_function(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}
#else
void* open_library(const std::string& name, std::string& problem) {
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  const char* const said = library == nullptr ? dlerror() : nullptr;
  problem = said != nullptr ? said : "";
  return library;
}

void* find_function(void* library, const char* name) { return dlsym(library, name); }
#endif

} // namespace arforge
