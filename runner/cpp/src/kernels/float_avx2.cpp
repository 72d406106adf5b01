#include "kernels/part.h"

#if ARFORGE_VNNI
#include <immintrin.h>

#include <array>
#include <cstring>

#define ARFORGE_CODE for_avx2
#define ARFORGE_TARGET __attribute__((target("avx2,fma")))

namespace arforge::kernels::ARFORGE_CODE {
namespace {

struct Sixteen {
  static constexpr std::size_t QUERIES = 1;
  __m256 low, high;

  ARFORGE_TARGET static Sixteen all(float number) { return {_mm256_set1_ps(number), _mm256_set1_ps(number)}; }
  ARFORGE_TARGET static Sixteen load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  ARFORGE_TARGET static __m256 eight(const std::int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
  ARFORGE_TARGET static __m256 eight(const float* from) { return _mm256_loadu_ps(from); }
  ARFORGE_TARGET static Sixteen load(const std::int8_t* from) { return {eight(from), eight(from + 8)}; }
  ARFORGE_TARGET void store(float* to) const {
    _mm256_storeu_ps(to, low);
    _mm256_storeu_ps(to + 8, high);
  }
  ARFORGE_TARGET Sixteen plus(Sixteen other) const {
    return {_mm256_add_ps(low, other.low), _mm256_add_ps(high, other.high)};
  }
  ARFORGE_TARGET Sixteen minus(float one) const {
    return {_mm256_sub_ps(low, _mm256_set1_ps(one)), _mm256_sub_ps(high, _mm256_set1_ps(one))};
  }
  ARFORGE_TARGET Sixteen times(float one) const {
    return {_mm256_mul_ps(low, _mm256_set1_ps(one)), _mm256_mul_ps(high, _mm256_set1_ps(one))};
  }
  ARFORGE_TARGET Sixteen plus_product(Sixteen some, float one) const {
    const __m256 factor = _mm256_set1_ps(one);
    return {_mm256_fmadd_ps(some.low, factor, low), _mm256_fmadd_ps(some.high, factor, high)};
  }
  ARFORGE_TARGET Sixteen times_plus(Sixteen some, float one) const {
    return {_mm256_fmadd_ps(low, some.low, _mm256_set1_ps(one)), _mm256_fmadd_ps(high, some.high, _mm256_set1_ps(one))};
  }
  ARFORGE_TARGET Sixteen rounded() const {
    constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(low, NEAREST), _mm256_round_ps(high, NEAREST)};
  }
  ARFORGE_TARGET Sixteen times(Sixteen other) const {
    return {_mm256_mul_ps(low, other.low), _mm256_mul_ps(high, other.high)};
  }
  ARFORGE_TARGET Sixteen over(Sixteen other) const {
    return {_mm256_div_ps(low, other.low), _mm256_div_ps(high, other.high)};
  }
  ARFORGE_TARGET Sixteen smaller(Sixteen other) const {
    return {_mm256_min_ps(low, other.low), _mm256_min_ps(high, other.high)};
  }
  ARFORGE_TARGET Sixteen larger(Sixteen other) const {
    return {_mm256_max_ps(low, other.low), _mm256_max_ps(high, other.high)};
  }
  ARFORGE_TARGET static __m256 power(__m256 powers) {
    const __m256i exponents = _mm256_add_epi32(_mm256_cvtps_epi32(powers), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponents, 23));
  }
  ARFORGE_TARGET Sixteen times_power(Sixteen powers) const { // 2^powers, whole and those of normal numbers
    return {_mm256_mul_ps(low, power(powers.low)), _mm256_mul_ps(high, power(powers.high))};
  }
  // These numbers where others are at least `least`, else zero.
  ARFORGE_TARGET Sixteen where_least(Sixteen others, float least) const {
    const __m256 bound = _mm256_set1_ps(least);
    return {_mm256_and_ps(low, _mm256_cmp_ps(others.low, bound, _CMP_GE_OQ)),
            _mm256_and_ps(high, _mm256_cmp_ps(others.high, bound, _CMP_GE_OQ))};
  }
  // These numbers where bytes, of which there are `count`, are not zero, else `otherwise`.
  ARFORGE_TARGET Sixteen where(const std::uint8_t* bytes, std::size_t count, float otherwise) const {
    std::array<std::uint8_t, 16> some{};
    std::memcpy(some.data(), bytes, count);
    const auto hidden = [](const std::uint8_t* from) ARFORGE_TARGET {
      const __m256i each = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
      return _mm256_castsi256_ps(_mm256_cmpeq_epi32(each, _mm256_setzero_si256()));
    };
    const __m256 other = _mm256_set1_ps(otherwise);
    return {_mm256_blendv_ps(low, other, hidden(some.data())), _mm256_blendv_ps(high, other, hidden(some.data() + 8))};
  }

  // 8 lines, `stride` numbers apart, to 8 columns, 16 apart.
  template <typename Number>
  ARFORGE_TARGET static void turn_eight(const Number* from, std::size_t stride, float* to) {
    __m256 lines[8], turned[8];
    ARFORGE_UNROLL_ALL
    for (std::size_t line = 0; line < 8; line++) {
      lines[line] = eight(from + line * stride);
    }
    ARFORGE_UNROLL_ALL
    for (std::size_t pair = 0; pair < 8; pair += 2) {
      turned[pair] = _mm256_unpacklo_ps(lines[pair], lines[pair + 1]);
      turned[pair + 1] = _mm256_unpackhi_ps(lines[pair], lines[pair + 1]);
    }
    ARFORGE_UNROLL_ALL
    for (std::size_t four = 0; four < 8; four += 4) {
      for (std::size_t half = 0; half < 2; half++) {
        const __m256d one = _mm256_castps_pd(turned[four + half]), other = _mm256_castps_pd(turned[four + half + 2]);
        lines[four + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(one, other));
        lines[four + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(one, other));
      }
    }
    ARFORGE_UNROLL_ALL
    for (std::size_t number = 0; number < 4; number++) {
      _mm256_storeu_ps(to + number * 16, _mm256_permute2f128_ps(lines[number], lines[number + 4], 0x20));
      _mm256_storeu_ps(to + (number + 4) * 16, _mm256_permute2f128_ps(lines[number], lines[number + 4], 0x31));
    }
  }

  // 16 lines, `stride` numbers apart, to 16 columns.
  template <typename Number>
  ARFORGE_TARGET static void turn(const Number* from, std::size_t stride, float* to) {
    for (std::size_t half = 0; half < 16; half += 8) {
      turn_eight(from + half * stride, stride, to + half);
      turn_eight(from + half * stride + 8, stride, to + std::size_t{8} * 16 + half);
    }
  }
};

} // namespace
} // namespace arforge::kernels::ARFORGE_CODE

#include "kernels/float_code.inc"

namespace arforge::kernels {
InFloat in_float_avx2() noexcept { return ARFORGE_CODE::IN_FLOAT; }
} // namespace arforge::kernels

#undef ARFORGE_CODE
#undef ARFORGE_TARGET
#endif
