// A stream over an open file of this process.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <streambuf>
#include <unistd.h>

// Writes to a file descriptor, one byte after the other; remembers why it failed.
class DescriptorBuffer : public std::streambuf {
public:
  explicit DescriptorBuffer(int descriptor) : descriptor_(descriptor) { clear(); }

  [[nodiscard]] int error() const { return error_; }

protected:
  int_type overflow(int_type letter) override {
    if (sync() != 0) {
      return traits_type::eof();
    }
    if (!traits_type::eq_int_type(letter, traits_type::eof())) {
      sputc(traits_type::to_char_type(letter));
    }
    return traits_type::not_eof(letter);
  }

  std::streamsize xsputn(const char* data, std::streamsize size) override {
    if (size < epptr() - pptr()) {
      std::memcpy(pptr(), data, static_cast<std::size_t>(size));
      pbump(static_cast<int>(size));
      return size;
    }
    return sync() == 0 && passed(data, static_cast<std::size_t>(size)) ? size : 0;
  }

  int sync() override {
    const bool done = passed(pbase(), static_cast<std::size_t>(pptr() - pbase()));
    clear();
    return done ? 0 : -1;
  }

private:
  void clear() { setp(buffer_.data(), buffer_.data() + buffer_.size()); }

  bool passed(const char* data, std::size_t size) {
    while (size > 0) {
      const ssize_t written = write(descriptor_, data, size);
      if (written < 0 && errno != EINTR) {
        error_ = errno;
        return false;
      }
      data += std::max<ssize_t>(written, 0);
      size -= static_cast<std::size_t>(std::max<ssize_t>(written, 0));
    }
    return true;
  }

  int descriptor_;
  int error_ = EIO;
  std::array<char, 1 << 16> buffer_{};
};
