// What the libraries that stand in for NVIDIA's share, and what tests ask of them.
//
// What goes wrong, and what is there, is said by environment variables, which are looked at when they matter:
// STAND_IN_VERSION, such as "1.7.1.116"; STAND_IN_DEVICES and STAND_IN_CAPABILITY, such as "8.6";
// STAND_IN_UNCAPTURABLE; STAND_IN_COPIES, for caches that are not updated in place; STAND_IN_FAILURE, what the library
// says of every run; STAND_IN_MEMORY, bytes of the device; STAND_IN_COUNTS, a file that is told the counts when the
// process ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include <cuda_runtime_api.h>

// While this lives, the thread is inside a library that is not arforge's.
struct Inside {
  Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  ~Inside();
};

using Work = std::function<bool()>; // whether it went well

// Queues work, to be done when it is waited for, or captured into a graph.
void enqueue(cudaStream_t stream, Work work);

// Whether all these bytes are the device's.
bool on_device(const void* place, std::size_t size);

extern "C" {
// Whether this thread is inside.
int stand_in_inside();

// Since the process began.
struct stand_in_counts {
  std::int64_t allocations, waits, launches, captures, copies; // copies: queued outside of graphs
  std::int64_t largest_copy, moved;                            // bytes; moved: of all copies that were done
  std::int64_t sent, fetched;                                  // of those, to the device and back
};
void stand_in_count(stand_in_counts* counts);
}
