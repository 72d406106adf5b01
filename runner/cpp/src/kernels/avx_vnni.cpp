#include "kernels/part.h"

#if ARFORGE_VNNI
#include <cpuid.h>
#include <immintrin.h>

#define ARFORGE_CODE for_avx_vnni
#define ARFORGE_TARGET __attribute__((target("avx2,fma,avxvnni")))

namespace arforge::kernels::ARFORGE_CODE {
namespace {

struct Vector {
  using Whole = __m256i;
  using Real = __m256;
  static constexpr std::size_t LANES = 8, TILES = 2, ROWS = 6;

  ARFORGE_TARGET static Whole load(const std::uint8_t* from) {
    return _mm256_load_si256(reinterpret_cast<const Whole*>(from));
  }
  ARFORGE_TARGET static Whole all(std::int32_t number) { return _mm256_set1_epi32(number); }
  ARFORGE_TARGET static Whole low_halves(Whole bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
  ARFORGE_TARGET static Whole high_halves(Whole bytes) { return low_halves(_mm256_srli_epi16(bytes, 4)); }
  ARFORGE_TARGET static Whole add_products(Whole sums, Whole codes, Whole numbers) {
    return _mm256_dpbusd_avx_epi32(sums, codes, numbers);
  }
  ARFORGE_TARGET static void store(std::int32_t* to, Whole sums) {
    _mm256_store_si256(reinterpret_cast<Whole*>(to), sums);
  }
  ARFORGE_TARGET static Real load_real(const float* from) { return _mm256_load_ps(from); }
  ARFORGE_TARGET static Real times(Real some, float one) { return _mm256_mul_ps(some, _mm256_set1_ps(one)); }
  ARFORGE_TARGET static Real plus_product(const float* totals, const std::int32_t* sums, Real scales) {
    const Whole some = _mm256_load_si256(reinterpret_cast<const Whole*>(sums));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(some), scales, _mm256_load_ps(totals));
  }
  ARFORGE_TARGET static void store_real(float* to, Real totals) { _mm256_store_ps(to, totals); }

  ARFORGE_TARGET static void measure(const float* numbers, std::size_t count, float& largest, float& unsound) {
    Real most = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    for (std::size_t first = 0; first < count; first += LANES) {
      const Real some = _mm256_loadu_ps(numbers + first);
      most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0F), some));
      odd = _mm256_fmadd_ps(some, _mm256_setzero_ps(), odd);
    }
    alignas(Real) float each[LANES], odds[LANES];
    _mm256_store_ps(each, most);
    _mm256_store_ps(odds, odd);
    for (std::size_t lane = 0; lane < LANES; lane++) {
      largest = each[lane] > largest ? each[lane] : largest;
      unsound += odds[lane];
    }
  }

  ARFORGE_TARGET static std::int32_t round(const float* numbers, std::size_t count, float factor, std::int8_t* codes) {
    Whole sum = _mm256_setzero_si256();
    for (std::size_t first = 0; first < count; first += LANES) {
      const Whole some = _mm256_cvtps_epi32(times(_mm256_loadu_ps(numbers + first), factor));
      sum = _mm256_add_epi32(sum, some);
      const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(some), _mm256_extracti128_si256(some, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + first), _mm_packs_epi16(half, half));
    }
    alignas(Whole) std::int32_t each[LANES];
    store(each, sum);
    std::int32_t total = 0;
    for (const std::int32_t one : each) {
      total += one;
    }
    return total;
  }
};

} // namespace
} // namespace arforge::kernels::ARFORGE_CODE

#include "kernels/part_code.inc"

namespace arforge::kernels {

const Instructions* avx_vnni() noexcept {
  static const Instructions FOUND = {"AVX-VNNI",
                                     ARFORGE_CODE::WIDTH,
                                     ARFORGE_CODE::Vector::ROWS,
                                     ARFORGE_CODE::multiply_rows_or_fewer<ARFORGE_CODE::Vector::ROWS>,
                                     ARFORGE_CODE::round_block,
                                     in_float_avx2()};
  constexpr unsigned AVX_VNNI = 1U << 4; // of EAX, leaf 7, part 1
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & AVX_VNNI) != 0 &&
                 __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
             ? &FOUND
             : nullptr;
}

} // namespace arforge::kernels

#undef ARFORGE_CODE
#undef ARFORGE_TARGET
#else

namespace arforge::kernels {
const Instructions* avx_vnni() noexcept { return nullptr; }
} // namespace arforge::kernels

#endif
