// The vocabulary for AVX-512 F, BW, VL, DQ and VNNI: F is one register. AMX builds on it, in a
// namespace of its own.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "subnormals.h"

namespace vitral::VITRAL_ISA {

using F = __m512;
struct I { __m512i v; };
struct B { __m512i v; };

inline F set1(float x) { return _mm512_set1_ps(x); }
inline F zero() { return _mm512_setzero_ps(); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F add(F x, F y) { return _mm512_add_ps(x, y); }
inline F sub(F x, F y) { return _mm512_sub_ps(x, y); }
inline F mul(F x, F y) { return _mm512_mul_ps(x, y); }
inline F div(F x, F y) { return _mm512_div_ps(x, y); }
inline F sqrt(F x) { return _mm512_sqrt_ps(x); }
inline F fma(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }
inline F rint(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F min(F x, F y) { return _mm512_min_ps(x, y); }
inline F max(F x, F y) { return _mm512_max_ps(x, y); }
inline F abs(F x) { return _mm512_abs_ps(x); }
inline F where_less(F x, F y, F yes, F no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), no, yes);
}
inline F where_nan(F x, F yes, F no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), no, yes); }
inline F power_of_two(F n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline F to_float(I x) { return _mm512_cvtepi32_ps(x.v); }
inline void store_i8(int8_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}
inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline F from_u8(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x)); }
inline F load_u8(const uint8_t* p) { return from_u8(load16(p)); }
inline F load_s8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p))); }
inline F load_low_nibble(const uint8_t* p) { return from_u8(_mm_and_si128(load16(p), _mm_set1_epi8(15))); }
inline F load_high_nibble(const uint8_t* p) {
  return from_u8(_mm_and_si128(_mm_srli_epi16(load16(p), 4), _mm_set1_epi8(15)));
}
inline __m256i load16h(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(load16h(p)); }
inline void store_f16(uint16_t* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline F load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16h(p)), 16));
}
inline __m512i round_bf16_bits(F x) {  // nearest, ties to even, in the upper half; subnormal numbers become zero
  const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
  const __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7F800000));
  return _mm512_mask_and_epi32(r, tiny, bits, _mm512_set1_epi32(static_cast<int>(0x80000000)));
}
inline F round_bf16(F x) {
  return _mm512_castsi512_ps(_mm512_and_si512(round_bf16_bits(x), _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}
inline void store_bf16(uint16_t* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16_bits(x), 16)));
}
// 16 times two bfloat16 numbers: the first ones and the second ones.
inline void load_pairs(const uint8_t* p, F& first, F& second) {
  const __m512i x = _mm512_loadu_si512(p);
  first = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  second = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}
// And back, rounded.
inline void store_pairs_of(uint8_t* p, F first, F second) {
  _mm512_storeu_si512(p, _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(round_bf16(first)), 16), _mm512_castps_si512(round_bf16(second))));
}
inline F first_lanes(F x, int n) { return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << n) - 1), x); }
inline float merge(F x) {
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 r = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  r = _mm_add_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_add_ss(r, _mm_shuffle_ps(r, r, 1)));
}
inline float largest(F x) { return _mm512_reduce_max_ps(x); }

inline I izero() { return {_mm512_setzero_si512()}; }
inline I iset1(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I iadd(I x, I y) { return {_mm512_add_epi32(x.v, y.v)}; }
inline I dot4(I acc, B codes, const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return {_mm512_dpbusd_epi32(acc.v, codes.v, _mm512_set1_epi32(four))};
}

inline B bload(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void bstore(uint8_t* p, B x) { _mm512_storeu_si512(p, x.v); }
inline B band(B x, uint8_t mask) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(static_cast<char>(mask)))}; }
inline B low_nibbles(B x) { return band(x, 15); }
inline B high_nibbles(B x) { return band({_mm512_srli_epi16(x.v, 4)}, 15); }
template <int shift>
inline B pairs(B x) { return band({_mm512_srli_epi16(x.v, shift)}, 3); }
template <int shift>
inline B or_pairs(B x, B from) {  // what a shift brings in from the neighbouring byte, the mask takes out
  __m512i two = from.v;
  if constexpr (shift < 4) two = _mm512_slli_epi16(two, 4 - shift);
  if constexpr (shift > 4) two = _mm512_srli_epi16(two, shift - 4);
  return {_mm512_ternarylogic_epi32(two, _mm512_set1_epi8(0x30), x.v, 0xEA)};  // (two & mask) | x
}
inline B or_bits(B x, const uint8_t* p, uint8_t bit) {
  uint64_t mask;
  std::memcpy(&mask, p, 8);
  return {_mm512_or_si512(x.v, _mm512_maskz_set1_epi8(mask, static_cast<char>(bit)))};
}
inline B lookup(const uint8_t* table, B x) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), x.v)};
}

}  // namespace vitral::VITRAL_ISA
