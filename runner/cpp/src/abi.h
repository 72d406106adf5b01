// What the files of the C interface share.
#pragma once

#include <new>

#include "arforge.hpp"
#include "text.h"

struct arforge_runner {
  arforge::Runner runner;
};

struct arforge_result {
  arforge::Result result;
};

// With what its functions have given, which lasts as long.
struct arforge_partial {
  const arforge::Partial& partial;
  std::vector<std::int64_t> tokens;
  arforge::Pictures pictures;
};

// Keeps a message as this thread's last error.
arforge_status arforge_failed(arforge_status status, const char* message) noexcept;

// Throws arforge::Error for what does not fit. The request refers to the caller's numbers.
arforge::Request arforge_request_of(const arforge_request& c);

// Runs `work`; whatever it throws becomes a status and this thread's last error.
template <class Work>
arforge_status guarded(Work work) noexcept {
  try {
    work();
    return ARFORGE_OK;
  } catch (const arforge::Error& error) {
    return arforge_failed(static_cast<arforge_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return arforge_failed(ARFORGE_ERROR_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return arforge_failed(ARFORGE_ERROR_INTERNAL, error.what());
  } catch (...) {
    return arforge_failed(ARFORGE_ERROR_INTERNAL, "unknown exception");
  }
}

template <class T>
T& given(T* pointer, const char* name) {
  if (pointer == nullptr) {
    throw arforge::Error(arforge::Code::argument, arforge::text(name, " is NULL"));
  }
  return *pointer;
}

// A struct of this library's size; one of another is from another version.
template <class T>
T& sized(T* pointer, const char* name) {
  T& found = given(pointer, name);
  if (found.size != sizeof(T)) {
    throw arforge::Error(arforge::Code::argument,
                         arforge::text(name, " has size ", found.size, ", this library's has ", sizeof(T),
                                       ": initialise it, and compile against this version's arforge.h"));
  }
  return found;
}

template <class T>
void store(T* place, T value) {
  if (place != nullptr) {
    *place = value;
  }
}
