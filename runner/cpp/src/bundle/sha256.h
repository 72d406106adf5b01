// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace arforge {

struct Sha256 {
  std::array<std::uint32_t, 8> state;
  std::array<std::uint8_t, 64> block; // bytes that do not fill a block yet
  std::uint64_t length;               // bytes entered so far
};

Sha256 sha256_start();
void sha256_enter(Sha256& hash, const std::uint8_t* data, std::size_t size);
std::string sha256_finish(Sha256& hash); // 64 hexadecimal digits

} // namespace arforge
