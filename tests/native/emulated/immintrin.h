// AVX-512 and AMX for a CPU that has neither: SIMDe's portable AVX-512, and here what SIMDe 0.7 lacks or does with
// another rounding: conversions as two halves of AVX2 and F16C, and tiles as plain arrays. Slow, but to the bit.
#pragma once
#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <cstdint>
#include <cstring>

namespace emulated {

inline simde__m512i join(__m256i low, __m256i high) {
  simde__m512i_private r;
  r.m256i[0] = low, r.m256i[1] = high;
  return simde__m512i_from_private(r);
}
inline simde__m512 join(__m256 low, __m256 high) {
  simde__m512_private r;
  r.m256[0] = low, r.m256[1] = high;
  return simde__m512_from_private(r);
}
inline __m256 half(simde__m512 x, int i) { return simde__m512_to_private(x).m256[i]; }
inline __m256i half(simde__m512i x, int i) { return simde__m512i_to_private(x).m256i[i]; }

inline simde__m512i cvtps_epi32(simde__m512 x) { return join(_mm256_cvtps_epi32(half(x, 0)), _mm256_cvtps_epi32(half(x, 1))); }
inline simde__m512 cvtepi32_ps(simde__m512i x) { return join(_mm256_cvtepi32_ps(half(x, 0)), _mm256_cvtepi32_ps(half(x, 1))); }
inline simde__m512 cvtph_ps(__m256i x) {
  return join(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
inline __m256i cvtps_ph(simde__m512 x) { return _mm256_set_m128i(_mm256_cvtps_ph(half(x, 1), 0), _mm256_cvtps_ph(half(x, 0), 0)); }
inline simde__m512i cvtepu8_epi32(__m128i x) { return join(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))); }
inline simde__m512i cvtepi8_epi32(__m128i x) { return join(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))); }
inline simde__m512i cvtepu16_epi32(__m256i x) {
  return join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}
inline simde__m512 abs_ps(simde__m512 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return join(_mm256_andnot_ps(sign, half(x, 0)), _mm256_andnot_ps(sign, half(x, 1)));
}
inline float reduce_max_ps(simde__m512 x) {
  const simde__m512_private a = simde__m512_to_private(x);
  float most = a.f32[0];
  for (int i = 1; i < 16; ++i) most = a.f32[i] > most ? a.f32[i] : most;
  return most;
}

struct TileConfig { uint8_t palette, start, unused[14]; uint16_t colsb[16]; uint8_t rows[16]; };
inline thread_local TileConfig config;
inline thread_local uint8_t tiles[8][16][64];

inline void loadconfig(const void* p) {
  std::memcpy(&config, p, sizeof config);
  std::memset(tiles, 0, sizeof tiles);
}
inline void zero(int t) { std::memset(tiles[t], 0, sizeof tiles[t]); }
inline void loadd(int t, const void* p, int64_t stride) {
  zero(t);
  for (int r = 0; r < config.rows[t]; ++r) std::memcpy(tiles[t][r], static_cast<const uint8_t*>(p) + r * stride, config.colsb[t]);
}
inline void stored(int t, void* p, int64_t stride) {
  for (int r = 0; r < config.rows[t]; ++r) std::memcpy(static_cast<uint8_t*>(p) + r * stride, tiles[t][r], config.colsb[t]);
}
// dst[m][n] += the dot product of four signed bytes of a[m] and b, for every k (Intel's SDM, TDPBSSD).
inline void dpbssd(int dst, int a, int b) {
  for (int m = 0; m < config.rows[dst]; ++m)
    for (int k = 0; k < config.colsb[a] / 4; ++k)
      for (int n = 0; n < config.colsb[dst] / 4; ++n) {
        int32_t sum;
        std::memcpy(&sum, &tiles[dst][m][4 * n], 4);
        for (int j = 0; j < 4; ++j) sum += static_cast<int8_t>(tiles[a][m][4 * k + j]) * static_cast<int8_t>(tiles[b][k][4 * n + j]);
        std::memcpy(&tiles[dst][m][4 * n], &sum, 4);
      }
}

inline float from_bf16(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// dst[m][n] += the sum of two chains of fma from zero, over the even places of a[m] and b and over the odd
// (law.py, `pair_products`).
[[gnu::noinline]] inline void add_pairs(int dst, int a, int b) {
  for (int m = 0; m < config.rows[dst]; ++m)
    for (int n = 0; n < config.colsb[dst] / 4; ++n) {
      float chain[2] = {0, 0}, sum;
      for (int k = 0; k < config.colsb[a] / 4; ++k)
        for (int odd = 0; odd < 2; ++odd)
          chain[odd] = __builtin_fmaf(from_bf16(&tiles[a][m][4 * k + 2 * odd]), from_bf16(&tiles[b][k][4 * n + 2 * odd]), chain[odd]);
      std::memcpy(&sum, &tiles[dst][m][4 * n], 4);
      sum += chain[0] + chain[1];
      std::memcpy(&tiles[dst][m][4 * n], &sum, 4);
    }
}
// TDPBF16PS takes subnormal numbers as zero, whatever the mode, and gives none.
inline void dpbf16ps(int dst, int a, int b) {
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);
  add_pairs(dst, a, b);
  _mm_setcsr(mode);
}

}  // namespace emulated

#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) emulated::cvtps_epi32(x)
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x) emulated::cvtepi32_ps(x)
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps(x) emulated::cvtph_ps(x)
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) emulated::cvtps_ph(x)
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32(x) emulated::cvtepu8_epi32(x)
#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(x) emulated::cvtepi8_epi32(x)
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(x) emulated::cvtepu16_epi32(x)
#undef _mm512_abs_ps
#define _mm512_abs_ps(x) emulated::abs_ps(x)
#undef _mm512_reduce_max_ps
#define _mm512_reduce_max_ps(x) emulated::reduce_max_ps(x)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(x, i) emulated::half(x, i)
#undef _tile_loadconfig
#define _tile_loadconfig(p) emulated::loadconfig(p)
#undef _tile_zero
#define _tile_zero(t) emulated::zero(t)
#undef _tile_loadd
#define _tile_loadd(t, p, stride) emulated::loadd(t, p, stride)
#undef _tile_stored
#define _tile_stored(t, p, stride) emulated::stored(t, p, stride)
#undef _tile_dpbssd
#define _tile_dpbssd(dst, a, b) emulated::dpbssd(dst, a, b)
#undef _tile_dpbf16ps
#define _tile_dpbf16ps(dst, a, b) emulated::dpbf16ps(dst, a, b)
#undef _tile_release
#define _tile_release() static_cast<void>(0)
