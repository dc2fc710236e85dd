// Products of packed weights for AVX2, eight rows of a panel at a time. Included by ops/matmul.h.
//
// With sixteen registers, sixteen weight rows leave no room for several tokens. Eight do: each block
// is unpacked two vectors at a time (columns 4v.. and 16 + 4v..), and every vector meets all tokens
// while it is in a register. AVX2 multiplies bytes into pairs of 16 bits; as many products are
// summed there as cannot overflow: 2 x code x 127 each. The float chains are the law's.

struct Half {
  __m256i low, high;  // vectors v and v + 4 of a block: codes of 8 rows x 4 columns
};

inline __m256i half_load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i half_and(__m256i x, uint8_t mask) { return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(mask))); }

// Vectors v and v + 4 of half `h` (rows 8h to 8h + 7) of a block.
template <Codes kind, int v>
inline Half unpack_half(const uint8_t* block, int h) {
  const uint8_t* p = block + h * 32;
  Half w;
  if constexpr (kind == Codes::bytes) return {half_load(p + v * 64), half_load(p + (v + 4) * 64)};
  if constexpr (kind == Codes::pairs || kind == Codes::pairs_1) {
    w = {half_and(_mm256_srli_epi16(half_load(p), 2 * v), 3), half_and(_mm256_srli_epi16(half_load(p + 64), 2 * v), 3)};
  } else {
    const __m256i x = half_load(p + v * 64);
    w = {half_and(x, 15), half_and(_mm256_srli_epi16(x, 4), 15)};
  }
  if constexpr (kind == Codes::table) {
    const __m256i table = _mm256_broadcastsi128_si256(load16(kTable));
    w = {_mm256_shuffle_epi8(table, w.low), _mm256_shuffle_epi8(table, w.high)};
  }
  if constexpr (kind == Codes::nibbles_1 || kind == Codes::pairs_1) {
    constexpr int at = kind == Codes::nibbles_1 ? 256 : 128, bit = kind == Codes::nibbles_1 ? 16 : 4;
    w.low = _mm256_or_si256(w.low, spread_bits(block + at + v * 8 + h * 4, bit));
    w.high = _mm256_or_si256(w.high, spread_bits(block + at + (v + 4) * 8 + h * 4, bit));
  }
  if constexpr (kind == Codes::nibbles_2) {
    const __m256i a = half_and(_mm256_srli_epi16(half_load(p + 256), 2 * v), 3), b = half_and(_mm256_srli_epi16(half_load(p + 320), 2 * v), 3);
    w = {_mm256_or_si256(w.low, _mm256_slli_epi16(a, 4)), _mm256_or_si256(w.high, _mm256_slli_epi16(b, 4))};
  }
  return w;
}

inline __m256 half_f16(const uint8_t* p, int h) { return _mm256_cvtph_ps(load8h(reinterpret_cast<const uint16_t*>(p) + h * 8)); }
inline __m256i half_bytes(const uint8_t* p, int h) {  // eight bytes in the low half
  return _mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + h * 8)));
}
inline __m256 half_u8(__m256i x) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm256_castsi256_si128(x))); }

// Where the scales of block `b` lie, and its place among those of a super-block.
template <Type T>
inline const uint8_t* super_of(const uint8_t* scales, int64_t b) { return scales + b * 32 / layout_of(T).super * layout_of(T).scale_bytes; }
template <Type T>
inline int block_of(int64_t b) { return static_cast<int>(b % (layout_of(T).super / 32)); }

template <Type T>
inline __m256 half_scale(const uint8_t* scales, int64_t b, int g, int h) {
  constexpr Layout l = layout_of(T);
  const uint8_t* s = super_of<T>(scales, b);
  const int j = block_of<T>(b) * (32 / l.group) + g;
  const __m256 d = half_f16(s, h);
  if constexpr (l.scales == Scales::half || l.scales == Scales::half_min) return d;
  if constexpr (l.scales == Scales::k_int8)
    return _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm256_castsi256_si128(half_bytes(s + 32 + j * 16, h)))));
  if constexpr (l.scales == Scales::k_6bit) return _mm256_mul_ps(d, half_u8(half_bytes(s + 64 + j * 32, h)));
  return _mm256_mul_ps(d, half_u8(half_and(half_bytes(s + 64 + j * 16, h), 15)));
}

template <Type T>
inline __m256 half_minimum(const uint8_t* scales, int64_t b, int g, int h) {
  constexpr Layout l = layout_of(T);
  const uint8_t* s = super_of<T>(scales, b);
  const int j = block_of<T>(b) * (32 / l.group) + g;
  if constexpr (l.scales == Scales::half_min) return half_f16(s + 32, h);
  const __m256 low = _mm256_sub_ps(_mm256_setzero_ps(), half_f16(s + 32, h));
  if constexpr (l.scales == Scales::k_6bit) return _mm256_mul_ps(low, half_u8(half_bytes(s + 64 + j * 32 + 16, h)));
  return _mm256_mul_ps(low, half_u8(half_and(_mm256_srli_epi16(half_bytes(s + 64 + j * 16, h), 4), 15)));
}

// The largest stored code, and how many vectors of such codes can be summed in 16 bits.
constexpr int largest_code(Codes kind) {
  switch (kind) {
    case Codes::pairs: return 3;
    case Codes::pairs_1: return 7;
    case Codes::nibbles: return 15;
    case Codes::nibbles_1: return 31;
    case Codes::nibbles_2: return 63;
    default: return 255;
  }
}
constexpr int sums_that_fit(Codes kind) { return 32767 / (2 * 127 * largest_code(kind)); }

// Left alone, gcc 12 forms all products first and adds them later, through memory: a third of the speed.
inline void keep(__m256i& sum) { asm("" : "+x"(sum)); }

inline __m256i four_codes(const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

// Even and odd bytes apart as 16-bit products, for codes above 127.
inline __m256i dot_wide(__m256i codes, __m256i x) {
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd = _mm256_srai_epi16(x, 8);
  return _mm256_add_epi32(_mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), even),
                          _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), odd));
}

// Integer dot products of one block, 8 rows, with N tokens: dot[t][g].
template <Type T, int N>
inline void half_dots(const uint8_t* block, int h, const int8_t* a, int64_t stride, __m256i (*dot)[32 / layout_of(T).group]) {
  constexpr Layout l = layout_of(T);
  constexpr int groups = 32 / l.group, last = groups - 1;
  if constexpr (largest_code(l.codes) > 127) {
    auto step = [&](auto vector) __attribute__((always_inline)) {
      constexpr int v = decltype(vector)::value;
      const Half w = unpack_half<l.codes, v>(block, h);
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
        const __m256i both = _mm256_add_epi32(dot_wide(w.low, four_codes(a + t * stride + v * 4)), dot_wide(w.high, four_codes(a + t * stride + 16 + v * 4)));
        dot[t][0] = v == 0 ? both : _mm256_add_epi32(dot[t][0], both);
        keep(dot[t][0]);
      }
    };
    step(Vector<0>{}), step(Vector<1>{}), step(Vector<2>{}), step(Vector<3>{});
    static_assert(groups == 1);
  } else {
    constexpr int fit = sums_that_fit(l.codes) * groups / 2;  // steps of two vectors before the sums are widened
    constexpr int run = fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum[N][groups];
    auto step = [&](auto vector) __attribute__((always_inline)) {
      constexpr int v = decltype(vector)::value;
      const Half w = unpack_half<l.codes, v>(block, h);
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
        const __m256i low = _mm256_maddubs_epi16(w.low, four_codes(a + t * stride + v * 4));
        sum[t][0] = v % run == 0 ? low : _mm256_add_epi16(sum[t][0], low);
        const __m256i high = _mm256_maddubs_epi16(w.high, four_codes(a + t * stride + 16 + v * 4));
        sum[t][last] = v % run == 0 && groups == 2 ? high : _mm256_add_epi16(sum[t][last], high);
        for (int g = 0; g < groups; ++g) keep(sum[t][g]);
      }
      if constexpr (v % run == run - 1)
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t)
          for (int g = 0; g < groups; ++g) {
            const __m256i wide = _mm256_madd_epi16(sum[t][g], ones);
            dot[t][g] = v < run ? wide : _mm256_add_epi32(dot[t][g], wide);
          }
    };
    step(Vector<0>{}), step(Vector<1>{}), step(Vector<2>{}), step(Vector<3>{});
  }
}

template <Type T, int N>
inline void half_product(const Matrix& m, int64_t p, int64_t next, int h, const Rows& a, const Terms& terms, int64_t t0, float* out, int64_t stride) {
  constexpr Layout l = layout_of(T);
  constexpr int groups = 32 / l.group;
  const uint8_t *codes = m.panel(p), *scales = m.scales(p);
  const int8_t* x = a.codes + t0 * a.cols;
  const int64_t blocks = m.cols / 32;
  __m256 main[N];
#pragma GCC unroll 8
  for (int t = 0; t < N; ++t) main[t] = _mm256_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    __m256i dot[N][groups];
    if (h == 0) ask_ahead<T>(codes, scales, b, next);
    half_dots<T, N>(codes + b * l.code_bytes, h, x + b * 32, a.cols, dot);
    for (int g = 0; g < groups; ++g) {
      const __m256 scale = half_scale<T>(scales, b, g, h);
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) {
        __m256i sum = dot[t][g];
        if constexpr (l.zero != 0) sum = _mm256_add_epi32(sum, _mm256_set1_epi32(terms.starts[(t0 + t) * terms.groups + b * groups + g]));
        const __m256 s = _mm256_mul_ps(scale, _mm256_set1_ps(a.scales[(t0 + t) * blocks + b]));
        main[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), s, main[t]);
      }
    }
  }
  if constexpr (has_minima(l.scales)) {
    __m256 low[N];
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) low[t] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; ++b)
      for (int g = 0; g < groups; ++g) {
        const __m256 minimum = half_minimum<T>(scales, b, g, h);
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t)
          low[t] = _mm256_fmadd_ps(_mm256_set1_ps(terms.lows[(t0 + t) * terms.groups + b * groups + g]), minimum, low[t]);
      }
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) main[t] = _mm256_add_ps(main[t], low[t]);
  }
  const int64_t row = p * 16 + h * 8, n = m.rows - row;
  for (int t = 0; t < N; ++t) {
    float* to = out + (t0 + t) * stride + row;
    if (n >= 8) {
      _mm256_storeu_ps(to, main[t]);
    } else {
      float some[8];
      _mm256_storeu_ps(some, main[t]);
      for (int64_t i = 0; i < n; ++i) to[i] = some[i];
    }
  }
}

constexpr int64_t kPanelBytes = 24 * 1024;  // panels that stay in the first cache while the tokens pass

template <Type T, int N>
inline void halves_of(const Matrix& m, int64_t from, int64_t to, const Rows& a, const Terms& terms, int64_t t, float* out, int64_t stride) {
  for (int64_t p = from; p < to; ++p)
    for (int h = 0; h < (m.rows - p * 16 > 8 ? 2 : 1); ++h) half_product<T, N>(m, p, p + 1 < m.panels() ? m.panel_size() : 0, h, a, terms, t, out, stride);
}

template <Type T>
inline void matmul_halves(const Matrix& m, const Rows& a, const Terms& terms, int64_t begin, int64_t end, float* out, int64_t stride) {
  const int64_t fit = kPanelBytes / m.panel_size(), some = fit < 1 ? 1 : fit;
  for (int64_t from = begin; from < end; from += some) {
    const int64_t to = from + some < end ? from + some : end;
    int64_t t = 0;
    for (; t + 4 <= a.rows; t += 4) halves_of<T, 4>(m, from, to, a, terms, t, out, stride);
    for (; t + 2 <= a.rows; t += 2) halves_of<T, 2>(m, from, to, a, terms, t, out, stride);
    for (; t < a.rows; ++t) halves_of<T, 1>(m, from, to, a, terms, t, out, stride);
  }
}
