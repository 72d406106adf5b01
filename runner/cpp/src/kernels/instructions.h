// Which instructions the kernels use, and memory as those want it.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>

#include "kernels/part.h"

namespace arforge::kernels {

// Null where this processor has none of them.
const Instructions* chosen() noexcept;

// Whether this processor has any.
bool supported() noexcept;

// Has all kernels use those of a name, before the first of them. Returns whether this processor has them.
bool choose(std::string_view name) noexcept;

struct AlignedDelete {
  void operator()(void* memory) const noexcept;
};
template <typename T>
using Aligned = std::unique_ptr<T[], AlignedDelete>;

// Memory of zeros.
template <typename T>
Aligned<T> aligned(std::size_t count) {
  void* memory = ::operator new(count * sizeof(T), std::align_val_t{LINE});
  std::memset(memory, 0, count * sizeof(T));
  return Aligned<T>(static_cast<T*>(memory));
}

} // namespace arforge::kernels
