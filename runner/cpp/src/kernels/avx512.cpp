#include "kernels/part.h"

#if ARFORGE_VNNI
#include <immintrin.h>

#define ARFORGE_CODE for_avx512
#define ARFORGE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,fma")))

namespace arforge::kernels::ARFORGE_CODE {
namespace {

struct Vector {
  using Whole = __m512i;
  using Real = __m512;
  static constexpr std::size_t LANES = 16, TILES = 4, ROWS = 6;

  ARFORGE_TARGET static Whole load(const std::uint8_t* from) { return _mm512_load_si512(from); }
  ARFORGE_TARGET static Whole all(std::int32_t number) { return _mm512_set1_epi32(number); }
  ARFORGE_TARGET static Whole low_halves(Whole bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
  ARFORGE_TARGET static Whole high_halves(Whole bytes) { return low_halves(_mm512_srli_epi16(bytes, 4)); }
  ARFORGE_TARGET static Whole add_products(Whole sums, Whole codes, Whole numbers) {
    return _mm512_dpbusd_epi32(sums, codes, numbers);
  }
  ARFORGE_TARGET static void store(std::int32_t* to, Whole sums) { _mm512_store_si512(to, sums); }
  ARFORGE_TARGET static Real load_real(const float* from) { return _mm512_load_ps(from); }
  ARFORGE_TARGET static Real times(Real some, float one) { return _mm512_mul_ps(some, _mm512_set1_ps(one)); }
  ARFORGE_TARGET static Real plus_product(const float* totals, const std::int32_t* sums, Real scales) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums)), scales, _mm512_load_ps(totals));
  }
  ARFORGE_TARGET static void store_real(float* to, Real totals) { _mm512_store_ps(to, totals); }

  ARFORGE_TARGET static void measure(const float* numbers, std::size_t count, float& largest, float& unsound) {
    Real most = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (std::size_t first = 0; first < count; first += LANES) {
      const Real some = _mm512_loadu_ps(numbers + first);
      most = _mm512_max_ps(most, _mm512_abs_ps(some));
      odd = _mm512_fmadd_ps(some, _mm512_setzero_ps(), odd);
    }
    largest = _mm512_reduce_max_ps(most);
    unsound = _mm512_reduce_add_ps(odd);
  }

  ARFORGE_TARGET static std::int32_t round(const float* numbers, std::size_t count, float factor, std::int8_t* codes) {
    Whole sum = _mm512_setzero_si512();
    for (std::size_t first = 0; first < count; first += LANES) {
      const Whole some = _mm512_cvtps_epi32(times(_mm512_loadu_ps(numbers + first), factor));
      sum = _mm512_add_epi32(sum, some);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + first), _mm512_cvtsepi32_epi8(some));
    }
    return _mm512_reduce_add_epi32(sum);
  }
};

} // namespace
} // namespace arforge::kernels::ARFORGE_CODE

#include "kernels/part_code.inc"

namespace arforge::kernels {

const Instructions* avx512() noexcept {
  static const Instructions FOUND = {"AVX-512 VNNI",
                                     ARFORGE_CODE::WIDTH,
                                     ARFORGE_CODE::Vector::ROWS,
                                     ARFORGE_CODE::multiply_rows_or_fewer<ARFORGE_CODE::Vector::ROWS>,
                                     ARFORGE_CODE::round_block,
                                     in_float_avx512()};
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512vnni")
             ? &FOUND
             : nullptr;
}

} // namespace arforge::kernels

#undef ARFORGE_CODE
#undef ARFORGE_TARGET
#else

namespace arforge::kernels {
const Instructions* avx512() noexcept { return nullptr; }
} // namespace arforge::kernels

#endif
