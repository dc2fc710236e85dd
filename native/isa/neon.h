// The vocabulary for ARMv8.2-A with dot products: F is four registers of 4 floats. With VITRAL_ISA_I8MM also
// products of unsigned by signed bytes; without them codes are shifted into the signed range and back.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "subnormals.h"

namespace vitral::VITRAL_ISA {

struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
struct B { uint8x16_t v[4]; };

#define EACH(expression) _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) { expression; }

inline F set1(float x) { F r; EACH(r.v[i] = vdupq_n_f32(x)) return r; }
inline F zero() { return set1(0.0f); }
inline F load(const float* p) { F r; EACH(r.v[i] = vld1q_f32(p + i * 4)) return r; }
inline void store(float* p, F x) { EACH(vst1q_f32(p + i * 4, x.v[i])) }
inline F add(F x, F y) { EACH(x.v[i] = vaddq_f32(x.v[i], y.v[i])) return x; }
inline F sub(F x, F y) { EACH(x.v[i] = vsubq_f32(x.v[i], y.v[i])) return x; }
inline F mul(F x, F y) { EACH(x.v[i] = vmulq_f32(x.v[i], y.v[i])) return x; }
inline F div(F x, F y) { EACH(x.v[i] = vdivq_f32(x.v[i], y.v[i])) return x; }
inline F sqrt(F x) { EACH(x.v[i] = vsqrtq_f32(x.v[i])) return x; }
inline F fma(F x, F y, F z) { EACH(z.v[i] = vfmaq_f32(z.v[i], x.v[i], y.v[i])) return z; }
inline F rint(F x) { EACH(x.v[i] = vrndnq_f32(x.v[i])) return x; }
// Compare and select: ARM's own minimum and maximum give NaN where the law wants the second operand.
inline F min(F x, F y) { EACH(x.v[i] = vbslq_f32(vcltq_f32(x.v[i], y.v[i]), x.v[i], y.v[i])) return x; }
inline F max(F x, F y) { EACH(x.v[i] = vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i])) return x; }
inline F abs(F x) { EACH(x.v[i] = vabsq_f32(x.v[i])) return x; }
inline F where_less(F x, F y, F yes, F no) { EACH(no.v[i] = vbslq_f32(vcltq_f32(x.v[i], y.v[i]), yes.v[i], no.v[i])) return no; }
inline F where_nan(F x, F yes, F no) { EACH(no.v[i] = vbslq_f32(vceqq_f32(x.v[i], x.v[i]), no.v[i], yes.v[i])) return no; }
inline F power_of_two(F n) {
  EACH(n.v[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23)))
  return n;
}
inline F to_float(I x) { F r; EACH(r.v[i] = vcvtq_f32_s32(x.v[i])) return r; }
inline void store_i8(int8_t* p, F x) {
  int16x4_t h[4];
  EACH(h[i] = vqmovn_s32(vcvtq_s32_f32(x.v[i])))
  vst1q_s8(p, vcombine_s8(vqmovn_s16(vcombine_s16(h[0], h[1])), vqmovn_s16(vcombine_s16(h[2], h[3]))));
}
inline F from_u8(uint8x16_t x) {
  const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_u8(vget_high_u8(x));
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
}
inline F load_u8(const uint8_t* p) { return from_u8(vld1q_u8(p)); }
inline F load_s8(const uint8_t* p) {
  const int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(p));
  const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
inline F load_low_nibble(const uint8_t* p) { return from_u8(vandq_u8(vld1q_u8(p), vdupq_n_u8(15))); }
inline F load_high_nibble(const uint8_t* p) { return from_u8(vshrq_n_u8(vld1q_u8(p), 4)); }
inline F load_f16(const uint16_t* p) {
  F r;
  EACH(r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + i * 4))))
  return r;
}
inline void store_f16(uint16_t* p, F x) { EACH(vst1_u16(p + i * 4, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])))) }
inline F load_bf16(const uint16_t* p) { F r; EACH(r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + i * 4), 16))) return r; }
inline uint32x4_t round_bf16_4(float32x4_t x) {  // nearest, ties to even, in the upper half; subnormal numbers become zero
  const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  uint32x4_t r = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
  // By bits: a comparison of floats would take subnormal numbers as the mode says.
  r = vbslq_u32(vcgtq_u32(vandq_u32(bits, vdupq_n_u32(0x7FFFFFFF)), vdupq_n_u32(0x7F800000)), vorrq_u32(bits, vdupq_n_u32(0x400000)), r);
  return vbslq_u32(vtstq_u32(bits, vdupq_n_u32(0x7F800000)), r, vandq_u32(bits, vdupq_n_u32(0x80000000)));
}
inline F round_bf16(F x) {
  EACH(x.v[i] = vreinterpretq_f32_u32(vandq_u32(round_bf16_4(x.v[i]), vdupq_n_u32(0xFFFF0000))))
  return x;
}
inline void store_bf16(uint16_t* p, F x) { EACH(vst1_u16(p + i * 4, vshrn_n_u32(round_bf16_4(x.v[i]), 16))) }
// 16 times two bfloat16 numbers: the first ones and the second ones.
inline void load_pairs(const uint8_t* p, F& first, F& second) {
  EACH(const uint32x4_t x = vreinterpretq_u32_u8(vld1q_u8(p + i * 16));
       first.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(x, 16));
       second.v[i] = vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xFFFF0000))))
}
// And back, rounded.
inline void store_pairs_of(uint8_t* p, F first, F second) {
  const F x = round_bf16(first), y = round_bf16(second);
  EACH(const uint32x4_t pair = vorrq_u32(vshrq_n_u32(vreinterpretq_u32_f32(x.v[i]), 16), vreinterpretq_u32_f32(y.v[i]));
       vst1q_u8(p + i * 16, vreinterpretq_u8_u32(pair)))
}
inline F first_lanes(F x, int n) {
  const int32_t four[4] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(four);
  EACH(const uint32x4_t in = vcltq_s32(lane, vdupq_n_s32(n - i * 4));
       x.v[i] = vreinterpretq_f32_u32(vandq_u32(in, vreinterpretq_u32_f32(x.v[i]))))
  return x;
}
inline float merge(F x) {
  const float32x4_t r = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t h = vadd_f32(vget_low_f32(r), vget_high_f32(r));
  return vget_lane_f32(h, 0) + vget_lane_f32(h, 1);
}
inline float largest(F x) {
  const F y = max(x, {{x.v[2], x.v[3], x.v[2], x.v[3]}}), z = max(y, {{y.v[1], y.v[1], y.v[1], y.v[1]}});
  float all[4], most;
  vst1q_f32(all, z.v[0]);
  most = all[0];
  for (int i = 1; i < 4; ++i) most = all[i] > most ? all[i] : most;
  return most;
}

inline I izero() { I r; EACH(r.v[i] = vdupq_n_s32(0)) return r; }
inline I iset1(int32_t x) { I r; EACH(r.v[i] = vdupq_n_s32(x)) return r; }
inline I iadd(I x, I y) { EACH(x.v[i] = vaddq_s32(x.v[i], y.v[i])) return x; }
inline I dot4(I acc, B codes, const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
#if defined(VITRAL_ISA_I8MM)
  EACH(acc.v[i] = vusdotq_s32(acc.v[i], codes.v[i], x))
#else  // code x a = (code - 128) x a + 128 x a
  const int32x4_t back = vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), x, vdupq_n_s8(1)), 7);
  EACH(acc.v[i] = vdotq_s32(vaddq_s32(acc.v[i], back), vreinterpretq_s8_u8(veorq_u8(codes.v[i], vdupq_n_u8(128))), x))
#endif
  return acc;
}

inline B bload(const uint8_t* p) { B r; EACH(r.v[i] = vld1q_u8(p + i * 16)) return r; }
inline void bstore(uint8_t* p, B x) { EACH(vst1q_u8(p + i * 16, x.v[i])) }
inline B low_nibbles(B x) { EACH(x.v[i] = vandq_u8(x.v[i], vdupq_n_u8(15))) return x; }
inline B high_nibbles(B x) { EACH(x.v[i] = vshrq_n_u8(x.v[i], 4)) return x; }
template <int shift>
inline B pairs(B x) {
  if constexpr (shift != 0) EACH(x.v[i] = vshrq_n_u8(x.v[i], shift))
  EACH(x.v[i] = vandq_u8(x.v[i], vdupq_n_u8(3)))
  return x;
}
template <int shift>
inline B or_pairs(B x, B from) {
  const B two = pairs<shift>(from);
  EACH(x.v[i] = vorrq_u8(x.v[i], vshlq_n_u8(two.v[i], 4)))
  return x;
}
inline B or_bits(B x, const uint8_t* p, uint8_t bit) {
  const uint8x16_t mask = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201)), value = vdupq_n_u8(bit);
  EACH(const uint8x16_t bits = vcombine_u8(vdup_n_u8(p[i * 2]), vdup_n_u8(p[i * 2 + 1]));
       x.v[i] = vorrq_u8(x.v[i], vandq_u8(vtstq_u8(bits, mask), value)))
  return x;
}
inline B lookup(const uint8_t* table, B x) {
  const uint8x16_t t = vld1q_u8(table);
  EACH(x.v[i] = vqtbl1q_u8(t, x.v[i]))
  return x;
}
#undef EACH

}  // namespace vitral::VITRAL_ISA
