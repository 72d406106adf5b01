// NumPy's files, without compression: .npy and .npz.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "checksum.h"

// The head of an .npy file. `kind`: "<i8" or "|u1", as NumPy names types.
std::string npy_head(const std::string& kind, const std::vector<std::int64_t>& shape);

// An .npz file of one array, written as it comes: the head of the array, its content in pieces, and the end.
class Npz {
public:
  // `size`: bytes of head and content.
  Npz(std::ostream& out, const std::string& name, std::uint64_t size);

  void write(const void* data, std::size_t bytes);
  void finish();

private:
  std::ostream& out_;
  std::string file_;
  std::uint64_t size_;
  Crc32 crc_;
};
