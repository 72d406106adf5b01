// AVX-512 where the compiler knows it; functions that use it are marked, so that all else runs on any x86-64.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ARFORGE_AVX512 1
#define ARFORGE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,fma")))
#define ARFORGE_APART __attribute__((noinline))
#ifdef __clang__
#define ARFORGE_UNROLL _Pragma("unroll")
#else
#define ARFORGE_UNROLL _Pragma("GCC unroll 8")
#endif
#include <immintrin.h>
#else
#define ARFORGE_AVX512 0
#define ARFORGE_TARGET
#endif
