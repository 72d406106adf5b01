#include "randomness.h"

#include <algorithm>

namespace arforge {
namespace {

constexpr int ROUNDS = 10;
constexpr std::uint64_t NOISE_STREAM = 2;
constexpr std::int64_t LANES = 8;
constexpr float BELOW_ONE = 1.0F - 1.0F / (1 << 24);

struct Product {
  std::uint64_t high, low;
};

// The 128 bits of a product, from its four 64-bit parts.
Product multiplied(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t a_high = a >> 32;
  const std::uint64_t a_low = a & 0xFFFFFFFF;
  const std::uint64_t b_high = b >> 32;
  const std::uint64_t b_low = b & 0xFFFFFFFF;
  const std::uint64_t low = a_low * b_low;
  const std::uint64_t middle = a_high * b_low + (low >> 32);
  const std::uint64_t cross = a_low * b_high + (middle & 0xFFFFFFFF);
  return {a_high * b_high + (middle >> 32) + (cross >> 32), cross << 32 | (low & 0xFFFFFFFF)};
}

} // namespace

std::array<std::uint64_t, 4> philox(std::array<std::uint64_t, 4> counter, std::array<std::uint64_t, 2> key) {
  for (int round = 0; round < ROUNDS; round++) {
    const Product first = multiplied(0xD2E7470EE14C6C93, counter[0]);
    const Product second = multiplied(0xCA5A826395121157, counter[2]);
    counter = {second.high ^ counter[1] ^ key[0], second.low, first.high ^ counter[3] ^ key[1], first.low};
    key[0] += 0x9E3779B97F4A7C15;
    key[1] += 0xBB67AE8584CAA73B;
  }
  return counter;
}

float uniform(std::uint64_t seed, std::uint64_t cell, std::uint64_t stream) {
  const std::uint64_t bits = philox({cell, 0, 0, 0}, {seed, stream})[0];
  return std::min(static_cast<float>(static_cast<double>(bits >> 11) * 0x1p-53), BELOW_ONE);
}

void noise(std::uint64_t seed, std::uint64_t cell, float* numbers, std::int64_t tokens) {
  for (std::int64_t token = 0; token < tokens; token += LANES) {
    const auto block = static_cast<std::uint64_t>(token / LANES);
    const std::array<std::uint64_t, 4> words = philox({1 + block, cell, 0, 0}, {seed, NOISE_STREAM});
    const std::int64_t count = std::min(LANES, tokens - token);
    for (std::int64_t lane = 0; lane < count; lane++) {
      const auto half = static_cast<std::uint32_t>(words[static_cast<std::size_t>(lane / 2)] >> (lane % 2 * 32));
      numbers[token + lane] = (static_cast<float>(half >> 9) + 0.5F) * 0x1p-23F;
    }
  }
}

void fill_random(StepBuffers& buffers, std::int64_t output, std::uint64_t seed, std::int64_t cell) {
  const auto place = static_cast<std::size_t>(output);
  if (!buffers.uniforms.empty()) {
    buffers.uniforms[place] = uniform(seed, static_cast<std::uint64_t>(cell));
  }
  if (!buffers.noise.empty()) {
    const std::size_t vocabulary = buffers.noise.size() / buffers.next_tokens.size();
    noise(seed, static_cast<std::uint64_t>(cell), buffers.noise.data() + place * vocabulary,
          static_cast<std::int64_t>(vocabulary));
  }
}

} // namespace arforge
