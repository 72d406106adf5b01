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

// As a shell needs it, in single quotes where it has anything special.
inline std::string quoted(const std::string& word) {
  const char* plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) {
    return word;
  }
  std::string result = "'";
  for (const char letter : word) {
    result += letter == '\'' ? "'\"'\"'" : std::string(1, letter);
  }
  return result + "'";
}

} // namespace arforge
