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

#define ALL(DO) DO(a) DO(b) DO(c) DO(d) DO(e) DO(f) DO(g) DO(h) DO(i) DO(j) DO(k) DO(l)
#define ZERO(sum) __m512i sum = _mm512_setzero_si512();
#define ADD(sum) sum = _mm512_dpbusd_epi32(sum, left, right);
#define USE(sum) __asm__ volatile("" : "+v"(sum)); // keeps them apart, and in registers

int main(void) {
  const __m512i left = _mm512_set1_epi8(3), right = _mm512_set1_epi8(5);
  ALL(ZERO)
  double best = 0;
  for (int round = 0; round < ROUNDS; round++) {
    const double start = now();
    for (int loop = 0; loop < LOOPS; loop++) {
      ALL(ADD)
      ALL(USE)
    }
    const double rate = (double)LOOPS * CHAINS * LANES / (now() - start);
    best = rate > best ? rate : best;
  }
  printf("%.0f G multiply-adds/s\n", best / 1e9);
  return 0;
}
