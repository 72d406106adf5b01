// The check sum of PNG and zip.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

class Crc32 {
public:
  void enter(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    for (std::size_t index = 0; index < size; index++) {
      crc_ = crc_ >> 8 ^ TABLE[(crc_ ^ bytes[index]) & 255];
    }
  }

  [[nodiscard]] std::uint32_t value() const { return ~crc_; }

private:
  static constexpr std::array<std::uint32_t, 256> table() {
    std::array<std::uint32_t, 256> entries{};
    for (std::uint32_t byte = 0; byte < 256; byte++) {
      std::uint32_t crc = byte;
      for (int bit = 0; bit < 8; bit++) {
        crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
      }
      entries[byte] = crc;
    }
    return entries;
  }

  static const std::array<std::uint32_t, 256> TABLE;
  std::uint32_t crc_ = 0xFFFFFFFF;
};

inline constexpr std::array<std::uint32_t, 256> Crc32::TABLE = Crc32::table();
