// The vocabulary for AVX2, FMA and F16C: F is two registers of 8 floats.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "subnormals.h"

#define VITRAL_HALVES 1

namespace vitral::VITRAL_ISA {

template <int v>
struct Vector { static constexpr int value = v; };

struct F { __m256 a, b; };
struct B { __m256i a, b; };

inline F set1(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F rint(F x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F abs(F x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F where_less(F x, F y, F yes, F no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
inline F where_nan(F x, F yes, F no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))};
}
inline __m256 power_of_two_8(__m256 n) {
  __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
inline F power_of_two(F n) { return {power_of_two_8(n.a), power_of_two_8(n.b)}; }
inline void store_i8(int8_t* p, F x) {
  __m256i w = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  w = _mm256_permute4x64_epi64(w, 0xD8);
  __m128i r = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), r);
}
inline __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline F from_u8(__m128i x) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
}
inline F load_u8(const uint8_t* p) { return from_u8(load16(p)); }
inline F load_s8(const uint8_t* p) {
  __m128i x = load16(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
inline F load_low_nibble(const uint8_t* p) { return from_u8(_mm_and_si128(load16(p), _mm_set1_epi8(15))); }
inline F load_high_nibble(const uint8_t* p) {
  return from_u8(_mm_and_si128(_mm_srli_epi16(load16(p), 4), _mm_set1_epi8(15)));
}
inline __m128i load8h(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline F load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load8h(p)), _mm256_cvtph_ps(load8h(p + 8))}; }
inline void store_f16(uint16_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 from_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline F load_bf16(const uint16_t* p) { return {from_bf16(load8h(p)), from_bf16(load8h(p + 8))}; }
inline __m256i round_bf16_8(__m256 x) {  // nearest, ties to even, in the upper half; subnormal numbers become zero
  const __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i tiny = _mm256_cmpeq_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7F800000)), _mm256_setzero_si256());
  __m256i r = _mm256_blendv_epi8(rounded, quiet, nan);
  r = _mm256_blendv_epi8(r, _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0x80000000))), tiny);
  return _mm256_and_si256(r, _mm256_set1_epi32(static_cast<int>(0xFFFF0000)));
}
inline F round_bf16(F x) { return {_mm256_castsi256_ps(round_bf16_8(x.a)), _mm256_castsi256_ps(round_bf16_8(x.b))}; }
inline void store_bf16(uint16_t* p, F x) {
  const __m256i both = _mm256_packus_epi32(_mm256_srli_epi32(round_bf16_8(x.a), 16), _mm256_srli_epi32(round_bf16_8(x.b), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(both, 0xD8));
}
// 16 times two bfloat16 numbers: the first ones and the second ones.
inline void load_pairs(const uint8_t* p, F& first, F& second) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
  first = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
  second = {_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))};
}
// And back, rounded.
inline void store_pairs_of(uint8_t* p, F first, F second) {
  const F x = round_bf16(first), y = round_bf16(second);
  const auto join = [](__m256 low, __m256 high) { return _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(low), 16), _mm256_castps_si256(high)); };
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), join(x.a, y.a));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), join(x.b, y.b));
}
inline F first_lanes(F x, int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  __m256 b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane));
  return {_mm256_and_ps(x.a, a), _mm256_and_ps(x.b, b)};
}
inline float merge_8(__m256 x) {
  __m128 r = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  r = _mm_add_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_add_ss(r, _mm_shuffle_ps(r, r, 1)));
}
inline float merge(F x) { return merge_8(_mm256_add_ps(x.a, x.b)); }
inline float largest(F x) {
  __m256 m = _mm256_max_ps(x.a, x.b);
  __m128 r = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  r = _mm_max_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_max_ss(r, _mm_shuffle_ps(r, r, 1)));
}

inline B bload(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline void bstore(uint8_t* p, B x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
inline B band(B x, uint8_t mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
inline B low_nibbles(B x) { return band(x, 15); }
inline B high_nibbles(B x) { return band({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}, 15); }
template <int shift>
inline B pairs(B x) { return band({_mm256_srli_epi16(x.a, shift), _mm256_srli_epi16(x.b, shift)}, 3); }
inline B bor(B x, B y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
template <int shift>
inline B or_pairs(B x, B from) {
  const B two = pairs<shift>(from);
  return bor(x, {_mm256_slli_epi16(two.a, 4), _mm256_slli_epi16(two.b, 4)});
}
inline __m256i spread_bits(const uint8_t* p, uint8_t bit) {  // 32 bits to 32 bytes
  int32_t bits;
  std::memcpy(&bits, p, 4);
  const __m256i which = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i mask = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
  __m256i x = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), which), mask);
  return _mm256_and_si256(_mm256_cmpeq_epi8(x, mask), _mm256_set1_epi8(static_cast<char>(bit)));
}
inline B or_bits(B x, const uint8_t* p, uint8_t bit) { return bor(x, {spread_bits(p, bit), spread_bits(p + 4, bit)}); }
inline B lookup(const uint8_t* table, B x) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, x.a), _mm256_shuffle_epi8(t, x.b)};
}

}  // namespace vitral::VITRAL_ISA
