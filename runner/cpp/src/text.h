// Builds messages out of pieces.
#pragma once

#include <sstream>
#include <string>

namespace arforge {

template <class... Pieces>
std::string text(const Pieces&... pieces) {
  std::ostringstream out;
  (out << ... << pieces);
  return out.str();
}

// "a, b, c", or `none` for nothing.
template <class List>
std::string listed(const List& items, const char* none = "none") {
  std::ostringstream out;
  const char* comma = "";
  for (const auto& item : items) {
    out << comma << item;
    comma = ", ";
  }
  return *comma != '\0' ? out.str() : none;
}

} // namespace arforge
