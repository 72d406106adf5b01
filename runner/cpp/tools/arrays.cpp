#include "arrays.h"

#include <sstream>

namespace {

constexpr std::uint64_t VERSION = 45;           // of the format: sizes of 8 bytes
constexpr std::uint64_t LATER = 1 << 3;         // the check sum follows the content
constexpr std::uint64_t DATE = 33;              // 1 January 1980
constexpr std::uint64_t ELSEWHERE = 0xFFFFFFFF; // a size that is told in 8 bytes

std::string little_endian(std::uint64_t value, int size) {
  std::string bytes;
  for (int index = 0; index < size; index++) {
    bytes += static_cast<char>(value >> (8 * index));
  }
  return bytes;
}

// What both headers of a file have in common.
std::string file_facts(std::uint32_t crc, std::size_t name) {
  return little_endian(VERSION, 2) + little_endian(LATER, 2) + little_endian(0, 4) + little_endian(DATE, 2) +
         little_endian(crc, 4) + little_endian(ELSEWHERE, 4) + little_endian(ELSEWHERE, 4) + little_endian(name, 2);
}

// Both sizes of a file that is stored as it is.
std::string sizes(std::uint64_t size) {
  return little_endian(1, 2) + little_endian(16, 2) + little_endian(size, 8) + little_endian(size, 8);
}

} // namespace

std::string npy_head(const std::string& kind, const std::vector<std::int64_t>& shape) {
  std::ostringstream header;
  header << "{'descr': '" << kind << "', 'fortran_order': False, 'shape': (";
  for (const std::int64_t side : shape) {
    header << side << ", ";
  }
  header << "), }";
  std::string text = header.str();
  text.resize((text.size() + 11 + 63) / 64 * 64 - 11, ' '); // with the 10 bytes before and the line's end, 64s
  text += '\n';
  return std::string("\x93NUMPY\x01\0", 8) + little_endian(text.size(), 2) + text;
}

Npz::Npz(std::ostream& out, const std::string& name, std::uint64_t size)
    : out_(out), file_(name + ".npy"), size_(size) {
  const std::string extra = sizes(size_);
  out_ << "PK\x03\x04" << file_facts(0, file_.size()) << little_endian(extra.size(), 2) << file_ << extra;
}

void Npz::write(const void* data, std::size_t bytes) {
  crc_.enter(data, bytes);
  out_.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
}

void Npz::finish() {
  const std::string extra = sizes(size_);
  const std::uint64_t directory = 4 + 26 + file_.size() + extra.size() + size_ + 24; // where it begins
  const std::string entry = "PK\x01\x02" + little_endian(VERSION, 2) + file_facts(crc_.value(), file_.size()) +
                            little_endian(extra.size(), 2) + std::string(2 + 2 + 2 + 4 + 4, '\0') + file_ + extra;
  out_ << "PK\x07\x08" << little_endian(crc_.value(), 4) << little_endian(size_, 8) << little_endian(size_, 8) << entry;
  out_ << "PK\x06\x06" << little_endian(44, 8) << little_endian(VERSION, 2) << little_endian(VERSION, 2)
       << little_endian(0, 8) << little_endian(1, 8) << little_endian(1, 8) << little_endian(entry.size(), 8)
       << little_endian(directory, 8);
  out_ << "PK\x06\x07" << little_endian(0, 4) << little_endian(directory + entry.size(), 8) << little_endian(1, 4);
  out_ << "PK\x05\x06" << little_endian(0, 4) << little_endian(1, 2) << little_endian(1, 2)
       << little_endian(entry.size(), 4) << little_endian(ELSEWHERE, 4) << little_endian(0, 2);
}
