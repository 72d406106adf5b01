// Reads NumPy's .npy files, which come from anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <istream>
#include <string>
#include <vector>

// A type of numbers.
struct NumberKind {
  const char *code, *name; // in the file, such as "<f4", and for people
  std::size_t bytes;
  double (*number)(const char* bytes);

  [[nodiscard]] bool is_floating() const { return code[1] == 'f'; }
  [[nodiscard]] bool is_whole() const { return code[1] == 'i' && bytes >= 4; } // int32 or int64
};

// An array of numbers that was read.
struct Array {
  const NumberKind* kind = nullptr;
  std::vector<std::int64_t> shape;
  std::string content;

  [[nodiscard]] std::size_t size() const; // in numbers
  [[nodiscard]] double number(std::size_t index) const { return kind->number(content.data() + index * kind->bytes); }
  [[nodiscard]] std::int64_t whole(std::size_t index) const; // where its kind `is_whole`: all 64 bits of it
};

// Such as "float32 [2, 120, 2048]".
std::string described(const Array& array);

// The array of an .npy file: numbers that are little-endian, in C order. Throws arforge::Error (request) for another
// file, or one that is not whole. The second reads an open one, `name` is for messages.
Array read_array(const std::string& path);
Array read_array(std::istream& in, const std::string& name);
