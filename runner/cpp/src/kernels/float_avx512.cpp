#include "kernels/part.h"

#if ARFORGE_VNNI
#include <immintrin.h>

#define ARFORGE_CODE for_avx512
#define ARFORGE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,fma")))

namespace arforge::kernels::ARFORGE_CODE {
namespace {

struct Sixteen {
  static constexpr std::size_t QUERIES = 4;
  __m512 numbers;

  ARFORGE_TARGET static Sixteen all(float number) { return {_mm512_set1_ps(number)}; }
  ARFORGE_TARGET static Sixteen load(const float* from) { return {_mm512_loadu_ps(from)}; }
  ARFORGE_TARGET static Sixteen load(const std::int8_t* from) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
  }
  ARFORGE_TARGET void store(float* to) const { _mm512_storeu_ps(to, numbers); }
  ARFORGE_TARGET Sixteen plus(Sixteen other) const { return {_mm512_add_ps(numbers, other.numbers)}; }
  ARFORGE_TARGET Sixteen minus(float one) const { return {_mm512_sub_ps(numbers, _mm512_set1_ps(one))}; }
  ARFORGE_TARGET Sixteen times(float one) const { return {_mm512_mul_ps(numbers, _mm512_set1_ps(one))}; }
  ARFORGE_TARGET Sixteen plus_product(Sixteen some, float one) const {
    return {_mm512_fmadd_ps(some.numbers, _mm512_set1_ps(one), numbers)};
  }
  ARFORGE_TARGET Sixteen times_plus(Sixteen some, float one) const {
    return {_mm512_fmadd_ps(numbers, some.numbers, _mm512_set1_ps(one))};
  }
  ARFORGE_TARGET Sixteen rounded() const { return {_mm512_roundscale_ps(numbers, _MM_FROUND_TO_NEAREST_INT)}; }
  ARFORGE_TARGET Sixteen times(Sixteen other) const { return {_mm512_mul_ps(numbers, other.numbers)}; }
  ARFORGE_TARGET Sixteen over(Sixteen other) const { return {_mm512_div_ps(numbers, other.numbers)}; }
  ARFORGE_TARGET Sixteen smaller(Sixteen other) const { return {_mm512_min_ps(numbers, other.numbers)}; }
  ARFORGE_TARGET Sixteen larger(Sixteen other) const { return {_mm512_max_ps(numbers, other.numbers)}; }
  ARFORGE_TARGET Sixteen times_power(Sixteen powers) const { // 2^powers, whole and those of normal numbers
    const __m512i exponents = _mm512_add_epi32(_mm512_cvtps_epi32(powers.numbers), _mm512_set1_epi32(127));
    return {_mm512_mul_ps(numbers, _mm512_castsi512_ps(_mm512_slli_epi32(exponents, 23)))};
  }
  // These numbers where others are at least `least`, else zero.
  ARFORGE_TARGET Sixteen where_least(Sixteen others, float least) const {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(others.numbers, _mm512_set1_ps(least), _CMP_GE_OQ), numbers)};
  }
  // These numbers where bytes, of which there are `count`, are not zero, else `otherwise`.
  ARFORGE_TARGET Sixteen where(const std::uint8_t* bytes, std::size_t count, float otherwise) const {
    const __m128i some = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1U << count) - 1), bytes);
    return {_mm512_mask_blend_ps(_mm_test_epi8_mask(some, some), _mm512_set1_ps(otherwise), numbers)};
  }

  // 16 lines, `stride` numbers apart, to 16 columns.
  template <typename Number>
  ARFORGE_TARGET static void turn(const Number* from, std::size_t stride, float* to) {
    __m512 lines[16], turned[16];
    ARFORGE_UNROLL_ALL
    for (std::size_t line = 0; line < 16; line++) {
      lines[line] = load(from + line * stride).numbers;
    }
    ARFORGE_UNROLL_ALL
    for (std::size_t pair = 0; pair < 16; pair += 2) {
      turned[pair] = _mm512_unpacklo_ps(lines[pair], lines[pair + 1]);
      turned[pair + 1] = _mm512_unpackhi_ps(lines[pair], lines[pair + 1]);
    }
    ARFORGE_UNROLL_ALL
    for (std::size_t four = 0; four < 16; four += 4) { // now each 128 bits have a number of four lines
      for (std::size_t half = 0; half < 2; half++) {
        const __m512d one = _mm512_castps_pd(turned[four + half]), other = _mm512_castps_pd(turned[four + half + 2]);
        lines[four + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(one, other));
        lines[four + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(one, other));
      }
    }
    ARFORGE_UNROLL_ALL
    for (std::size_t number = 0; number < 4; number++) {
      turned[number] = _mm512_shuffle_f32x4(lines[number], lines[number + 4], 0x88);
      turned[number + 4] = _mm512_shuffle_f32x4(lines[number], lines[number + 4], 0xdd);
      turned[number + 8] = _mm512_shuffle_f32x4(lines[number + 8], lines[number + 12], 0x88);
      turned[number + 12] = _mm512_shuffle_f32x4(lines[number + 8], lines[number + 12], 0xdd);
    }
    ARFORGE_UNROLL_ALL
    for (std::size_t number = 0; number < 4; number++) {
      float* const column = to + number * 16;
      _mm512_storeu_ps(column, _mm512_shuffle_f32x4(turned[number], turned[number + 8], 0x88));
      _mm512_storeu_ps(column + 128, _mm512_shuffle_f32x4(turned[number], turned[number + 8], 0xdd));
      _mm512_storeu_ps(column + 64, _mm512_shuffle_f32x4(turned[number + 4], turned[number + 12], 0x88));
      _mm512_storeu_ps(column + 192, _mm512_shuffle_f32x4(turned[number + 4], turned[number + 12], 0xdd));
    }
  }
};

} // namespace
} // namespace arforge::kernels::ARFORGE_CODE

#include "kernels/float_code.inc"

namespace arforge::kernels {
InFloat in_float_avx512() noexcept { return ARFORGE_CODE::IN_FLOAT; }
} // namespace arforge::kernels

#undef ARFORGE_CODE
#undef ARFORGE_TARGET
#endif
