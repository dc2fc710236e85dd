// The vocabulary in plain C++: the portable truth that every other instruction set must equal.
// F is 16 floats, I 16 int32, B 64 bytes. Compiled for the oldest machine; no std:: templates.
#pragma once
#include <cstdint>
#include <cstring>

#include "subnormals.h"

namespace vitral::VITRAL_ISA {

struct F { float v[16]; };
struct I { int32_t v[16]; };
struct B { uint8_t v[64]; };

#define EACH(expression) for (int i = 0; i < 16; ++i) { expression; }

inline F set1(float x) { F r; EACH(r.v[i] = x) return r; }
inline F zero() { return set1(0.0f); }
inline F load(const float* p) { F r; EACH(r.v[i] = p[i]) return r; }
inline void store(float* p, F a) { EACH(p[i] = a.v[i]) }
inline F add(F a, F b) { EACH(a.v[i] += b.v[i]) return a; }
inline F sub(F a, F b) { EACH(a.v[i] -= b.v[i]) return a; }
inline F mul(F a, F b) { EACH(a.v[i] *= b.v[i]) return a; }
inline F div(F a, F b) { EACH(a.v[i] /= b.v[i]) return a; }
inline F sqrt(F a) { EACH(a.v[i] = __builtin_sqrtf(a.v[i])) return a; }
inline F fma(F a, F b, F c) { EACH(c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i])) return c; }
inline F rint(F a) { EACH(a.v[i] = __builtin_rintf(a.v[i])) return a; }
// As x86: the second operand where the comparison is false, also for NaN.
inline F min(F a, F b) { EACH(a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]) return a; }
inline F max(F a, F b) { EACH(a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]) return a; }
inline F abs(F a) { EACH(a.v[i] = __builtin_fabsf(a.v[i])) return a; }
inline F where_less(F a, F b, F yes, F no) { EACH(no.v[i] = a.v[i] < b.v[i] ? yes.v[i] : no.v[i]) return no; }
inline F where_nan(F a, F yes, F no) { EACH(no.v[i] = a.v[i] != a.v[i] ? yes.v[i] : no.v[i]) return no; }
inline F power_of_two(F n) {  // n whole, -126..127
  F r;
  EACH(int32_t bits = (static_cast<int32_t>(n.v[i]) + 127) << 23; std::memcpy(&r.v[i], &bits, 4))
  return r;
}
inline F to_float(I a) { F r; EACH(r.v[i] = static_cast<float>(a.v[i])) return r; }
inline void store_i8(int8_t* p, F a) { EACH(p[i] = static_cast<int8_t>(a.v[i])) }  // whole, -128..127
inline F load_u8(const uint8_t* p) { F r; EACH(r.v[i] = p[i]) return r; }
inline F load_s8(const uint8_t* p) { F r; EACH(r.v[i] = static_cast<int8_t>(p[i])) return r; }
inline F load_low_nibble(const uint8_t* p) { F r; EACH(r.v[i] = p[i] & 15) return r; }
inline F load_high_nibble(const uint8_t* p) { F r; EACH(r.v[i] = p[i] >> 4) return r; }
// By hand: not every compiler has a 16-bit float for every machine.
inline float from_f16(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 0) {  // zero or subnormal: fraction x 2^-24, exact
    const float x = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -x : x;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | fraction << 13;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint16_t to_f16(float x) {  // nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
  if (size > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | (size >> 13 & 1023));
  if (size >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // 65520 and above: infinity
  if (size < 0x38800000) {  // below 2^-14: adding 1/2 rounds at 2^-24, its last place
    float y;
    std::memcpy(&y, &size, 4);
    y += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &y, 4);
    return static_cast<uint16_t>(sign | (rounded - 0x3F000000));
  }
  return static_cast<uint16_t>(sign | ((size + 0xFFF + (size >> 13 & 1) - 0x38000000) >> 13));
}
inline F load_f16(const uint16_t* p) { F r; EACH(r.v[i] = from_f16(p[i])) return r; }
inline void store_f16(uint16_t* p, F a) { EACH(p[i] = to_f16(a.v[i])) }
inline F load_bf16(const uint16_t* p) {
  F r;
  EACH(uint32_t bits = static_cast<uint32_t>(p[i]) << 16; std::memcpy(&r.v[i], &bits, 4))
  return r;
}
inline uint32_t to_bf16(float x) {  // nearest, ties to even; subnormal numbers become zero
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return bits >> 16 | 64;
  if (!(bits & 0x7F800000)) return bits >> 16 & 0x8000;
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline void store_bf16(uint16_t* p, F a) { EACH(p[i] = static_cast<uint16_t>(to_bf16(a.v[i]))) }
inline F round_bf16(F a) { EACH(uint32_t bits = to_bf16(a.v[i]) << 16; std::memcpy(&a.v[i], &bits, 4)) return a; }
// 16 times two bfloat16 numbers: the first ones and the second ones.
inline void load_pairs(const uint8_t* p, F& first, F& second) {
  uint32_t pair, high;
  EACH(std::memcpy(&pair, p + i * 4, 4); high = pair << 16; std::memcpy(&first.v[i], &high, 4); high = pair & 0xFFFF0000;
       std::memcpy(&second.v[i], &high, 4))
}
// And back, rounded.
inline void store_pairs_of(uint8_t* p, F first, F second) {
  EACH(const uint32_t pair = to_bf16(first.v[i]) | to_bf16(second.v[i]) << 16; std::memcpy(p + i * 4, &pair, 4))
}
inline F first_lanes(F a, int n) { EACH(a.v[i] = i < n ? a.v[i] : 0.0f) return a; }  // zeros behind
inline float merge(F a) {  // 0..7 with 8..15, then halves again
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
  return a.v[0];
}
inline float largest(F a) { float m = a.v[0]; EACH(m = a.v[i] > m ? a.v[i] : m) return m; }

inline I izero() { I r; EACH(r.v[i] = 0) return r; }
inline I iset1(int32_t x) { I r; EACH(r.v[i] = x) return r; }
inline I iadd(I a, I b) { EACH(a.v[i] += b.v[i]) return a; }
// 16 rows x 4 columns of unsigned codes times the 4 signed activations at a.
inline I dot4(I acc, B codes, const int8_t* a) {
  EACH(for (int j = 0; j < 4; ++j) acc.v[i] += static_cast<int32_t>(codes.v[4 * i + j]) * a[j])
  return acc;
}

#undef EACH
#define EACH(expression) for (int i = 0; i < 64; ++i) { expression; }
inline B bload(const uint8_t* p) { B r; std::memcpy(r.v, p, 64); return r; }
inline void bstore(uint8_t* p, B a) { std::memcpy(p, a.v, 64); }
inline B low_nibbles(B a) { EACH(a.v[i] &= 15) return a; }
inline B high_nibbles(B a) { EACH(a.v[i] >>= 4) return a; }
template <int shift>
inline B pairs(B a) { EACH(a.v[i] = (a.v[i] >> shift) & 3) return a; }
// Adds the two bits at `shift` of each byte of `from`, as bits 4 and 5.
template <int shift>
inline B or_pairs(B a, B from) { EACH(a.v[i] |= static_cast<uint8_t>((from.v[i] >> shift & 3) << 4)) return a; }
// Adds `bit` to the bytes whose bit is set in the 64 at p.
inline B or_bits(B a, const uint8_t* p, uint8_t bit) {
  EACH(a.v[i] |= (p[i / 8] >> (i % 8) & 1) ? bit : 0)
  return a;
}
inline B lookup(const uint8_t* table, B a) { EACH(a.v[i] = table[a.v[i]]) return a; }
#undef EACH

}  // namespace vitral::VITRAL_ISA
