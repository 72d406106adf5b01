// The rate of 8-bit multiply-adds that one core reaches in a loop of nothing else; run one a core at the same time.
//
//     gcc -O2 -mavx512f -mavx512vnni bench/vnni.c -o vnni && (./vnni & ./vnni; wait)

#include <immintrin.h>
#include <stdio.h>
#include <time.h>

enum { CHAINS = 12, LOOPS = 5000000, ROUNDS = 30, LANES = 64 };

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(void) {
  const __m512i left = _mm512_set1_epi8(3), right = _mm512_set1_epi8(5);
  __m512i sums[CHAINS];
  for (int chain = 0; chain < CHAINS; chain++) {
    sums[chain] = _mm512_setzero_si512();
  }
  double best = 0;
  for (int round = 0; round < ROUNDS; round++) {
    const double start = now();
    for (int loop = 0; loop < LOOPS; loop++) {
#pragma GCC unroll 12
      for (int chain = 0; chain < CHAINS; chain++) {
        sums[chain] = _mm512_dpbusd_epi32(sums[chain], left, right);
        __asm__ volatile("" : "+v"(sums[chain])); // keeps the loop from being computed beforehand
      }
    }
    const double rate = (double)LOOPS * CHAINS * LANES / (now() - start);
    best = rate > best ? rate : best;
  }
  printf("%.0f G multiply-adds/s\n", best / 1e9);
  return 0;
}
