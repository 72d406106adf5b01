// Entries of lists by the whole numbers that cells, rows and images are counted in.
#pragma once

#include <cstdint>
#include <vector>

namespace arforge {

template <class T>
const T& at(const std::vector<T>& list, std::int64_t place) {
  return list[static_cast<std::size_t>(place)];
}

template <class T>
T& at(std::vector<T>& list, std::int64_t place) {
  return list[static_cast<std::size_t>(place)];
}

} // namespace arforge
