// Products of activations with weights, written once over the vocabulary of an instruction set.
// Included inside that set's namespace. The law: law.py, `linear`.

inline constexpr Layout layout_of(Type t) { return kLayouts[t]; }

// The 8 vectors of a 32-column block.
template <Type T>
inline void unpack_block(const uint8_t* p, B* out) {
  constexpr Codes kind = layout_of(T).codes;
  if constexpr (kind == Codes::bytes) {
    for (int v = 0; v < 8; ++v) out[v] = bload(p + v * 64);
  } else if constexpr (kind == Codes::pairs || kind == Codes::pairs_1) {
    for (int h = 0; h < 2; ++h) {
      B x = bload(p + h * 64);
      out[4 * h] = pairs<0>(x), out[4 * h + 1] = pairs<2>(x), out[4 * h + 2] = pairs<4>(x), out[4 * h + 3] = pairs<6>(x);
    }
    if constexpr (kind == Codes::pairs_1)
      for (int v = 0; v < 8; ++v) out[v] = or_bits(out[v], p + 128 + v * 8, 4);
  } else {
    for (int v = 0; v < 4; ++v) {
      B x = bload(p + v * 64);
      out[v] = low_nibbles(x), out[v + 4] = high_nibbles(x);
    }
    if constexpr (kind == Codes::table)
      for (int v = 0; v < 8; ++v) out[v] = lookup(kTable, out[v]);
    if constexpr (kind == Codes::nibbles_1)
      for (int v = 0; v < 8; ++v) out[v] = or_bits(out[v], p + 256 + v * 8, 16);
    if constexpr (kind == Codes::nibbles_2)
      for (int h = 0; h < 2; ++h) {
        B x = bload(p + 256 + h * 64);
        out[4 * h] = or_pairs<0>(out[4 * h], x), out[4 * h + 1] = or_pairs<2>(out[4 * h + 1], x);
        out[4 * h + 2] = or_pairs<4>(out[4 * h + 2], x), out[4 * h + 3] = or_pairs<6>(out[4 * h + 3], x);
      }
  }
}

// Scales and minima of the one or two groups of block `b` of a panel, 16 rows in lanes.
template <Type T>
inline void block_scales(const uint8_t* scales, int64_t b, F* scale, F* minimum) {
  constexpr Layout l = layout_of(T);
  constexpr int groups = 32 / l.group;
  const uint8_t* s = scales + b * 32 / l.super * l.scale_bytes;
  const int j = static_cast<int>(b % (l.super / 32));
  F d = load_f16(reinterpret_cast<const uint16_t*>(s));
  if constexpr (l.scales == Scales::half) {
    scale[0] = d;
  } else if constexpr (l.scales == Scales::half_min) {
    scale[0] = d;
    minimum[0] = load_f16(reinterpret_cast<const uint16_t*>(s + 32));
  } else if constexpr (l.scales == Scales::k_int8) {
    for (int g = 0; g < groups; ++g) scale[g] = mul(d, load_s8(s + 32 + (j * groups + g) * 16));
  } else {
    F low = sub(zero(), load_f16(reinterpret_cast<const uint16_t*>(s + 32)));  // -dmin, so that -(dmin * m) is one product
    for (int g = 0; g < groups; ++g) {
      if constexpr (l.scales == Scales::k_6bit) {
        scale[g] = mul(d, load_u8(s + 64 + j * 32));
        minimum[g] = mul(low, load_u8(s + 64 + j * 32 + 16));
      } else {
        scale[g] = mul(d, load_low_nibble(s + 64 + (j * 2 + g) * 16));
        minimum[g] = mul(low, load_high_nibble(s + 64 + (j * 2 + g) * 16));
      }
    }
  }
}

// Memory that a thread keeps from call to call.
class Scratch {
 public:
  ~Scratch() { __builtin_free(data_); }
  uint8_t* room(int64_t bytes) {
    if (bytes > size_) {
      __builtin_free(data_);
      size_ = bytes + bytes / 2;
      data_ = static_cast<uint8_t*>(__builtin_malloc(size_ + 64));
      if (!data_) __builtin_trap();  // as the system does when memory ends while it is touched
    }
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(data_) + 63) / 64 * 64);
  }

 private:
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};
inline thread_local Scratch kept_terms, kept_tiles;

// What the activations of a group contribute whatever the codes are: minus zero times their sum,
// where the integer dot starts; and scale times sum, which meets the minimum.
struct Terms {
  int64_t groups;   // of a row
  int32_t* starts;  // (rows, groups), or null
  float* lows;      // (rows, groups), or null
};

template <Type T>
inline Terms find_terms(const Rows& a) {
  constexpr Layout l = layout_of(T);
  const int64_t groups = a.cols / l.group, n = a.rows * groups;
  Terms terms{groups, nullptr, nullptr};
  if constexpr (l.zero == 0 && !has_minima(l.scales)) return terms;
  uint8_t* room = kept_terms.room(n * 4);
  if constexpr (l.zero != 0) terms.starts = reinterpret_cast<int32_t*>(room);
  else terms.lows = reinterpret_cast<float*>(room);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t sum = l.group == 16 ? a.sums[i] : a.sums[2 * i] + a.sums[2 * i + 1];
    if constexpr (l.zero != 0) terms.starts[i] = -l.zero * sum;
    else terms.lows[i] = a.scales[i * l.group / 32] * static_cast<float>(sum);
  }
  return terms;
}

inline void store_panel(const Matrix& m, int64_t p, float* out, F x) {
  const int64_t n = m.rows - p * 16;
  if (n >= 16) return store(out + p * 16, x);
  float all[16];
  store(all, x);
  for (int64_t i = 0; i < n; ++i) out[p * 16 + i] = all[i];
}

// A panel is asked for while the one before it is multiplied, into the second cache, and its blocks shortly before
// their turn into the first: the machine's own read-ahead ends with each page of 4096 bytes and does not see
// the scales coming. Here a row of 1024 to 5632 columns was multiplied 1.4 to 1.6 times as fast. `next` is the
// distance to the panel to ask for, 0 where there is none.
constexpr int kSoon = 1024;  // bytes of codes

template <Type T>
inline void ask_ahead(const uint8_t* codes, const uint8_t* scales, int64_t b, int64_t next) {
  constexpr Layout l = layout_of(T);
  const uint8_t* block = codes + b * l.code_bytes;
#pragma GCC unroll 8
  for (int i = 0; i < l.code_bytes; i += 64) __builtin_prefetch(block + kSoon + i, 0, 3);
#pragma GCC unroll 8
  for (int i = 0; i < l.code_bytes; i += 64) __builtin_prefetch(block + next + i, 0, 2);
  __builtin_prefetch(scales + b * (l.scale_bytes * 32 / l.super) + next, 0, 2);
}

#if defined(VITRAL_HALVES)
#include "../special/avx2_panels.h"

template <Type T>
void matmul_packed(const Matrix& m, const Rows& a, int64_t begin, int64_t end, float* out, int64_t stride) {
  matmul_halves<T>(m, a, find_terms<T>(a), begin, end, out, stride);
}
#else
// One block of 16 rows times N rows of activations, added to the chains.
template <Type T, int N>
inline void block_product(const B* w, const F* scale, const F* minimum, const Rows& a, const Terms& terms, int64_t t0, int64_t b, F* main, F* low) {
  constexpr Layout l = layout_of(T);
  constexpr int groups = 32 / l.group;
#pragma GCC unroll 8
  for (int t = 0; t < N; ++t) {
    const int8_t* codes = a.codes + (t0 + t) * a.cols + b * 32;
    const int64_t term = (t0 + t) * terms.groups + b * groups;
    F s = set1(a.scales[(t0 + t) * (a.cols / 32) + b]);
    I dot[2] = {izero(), izero()};
    if constexpr (l.zero != 0)
      for (int g = 0; g < groups; ++g) dot[g] = iset1(terms.starts[term + g]);
    // Few rows: two chains, for their latency is not hidden by the other rows.
    constexpr bool together = groups == 1 && N > 2;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      dot[0] = dot4(dot[0], w[v], codes + v * 4);
      if constexpr (!together) dot[1] = dot4(dot[1], w[v + 4], codes + 16 + v * 4);
    }
    if constexpr (together)
#pragma GCC unroll 4
      for (int v = 4; v < 8; ++v) dot[0] = dot4(dot[0], w[v], codes + v * 4);
    if constexpr (groups == 1 && !together) dot[0] = iadd(dot[0], dot[1]);
    for (int g = 0; g < groups; ++g) {
      main[t] = fma(to_float(dot[g]), mul(scale[g], s), main[t]);
      if constexpr (has_minima(l.scales)) low[t] = fma(set1(terms.lows[term + g]), minimum[g], low[t]);
    }
  }
}

template <Type T, int N>
inline void panel_product(const Matrix& m, int64_t p, int64_t next, const Rows& a, const Terms& terms, int64_t t0, float* out, int64_t stride) {
  constexpr Layout l = layout_of(T);
  F main[N], low[N];
  for (int t = 0; t < N; ++t) main[t] = low[t] = zero();
  const uint8_t *codes = m.panel(p), *scales = m.scales(p);
  for (int64_t b = 0; b < m.cols / 32; ++b) {
    B w[8];
    F scale[2], minimum[2];
    ask_ahead<T>(codes, scales, b, next);
    unpack_block<T>(codes + b * l.code_bytes, w);
    block_scales<T>(scales, b, scale, minimum);
    block_product<T, N>(w, scale, minimum, a, terms, t0, b, main, low);
  }
  for (int t = 0; t < N; ++t)
    store_panel(m, p, out + (t0 + t) * stride, has_minima(l.scales) ? add(main[t], low[t]) : main[t]);
}

#if defined(VITRAL_TILES)
#include "matmul_tiles.h"
#endif

template <Type T>
void matmul_packed(const Matrix& m, const Rows& a, int64_t begin, int64_t end, float* out, int64_t stride) {
#if defined(VITRAL_TILES)
  if (a.lows) return matmul_tiles<T>(m, a, begin, end, out, stride);
#endif
  const Terms terms = find_terms<T>(a);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t next = p + 1 < m.panels() ? m.panel_size() : 0;
    int64_t t = 0;
    for (; t + 8 <= a.rows; t += 8) panel_product<T, 8>(m, p, next, a, terms, t, out, stride);
    for (; t + 4 <= a.rows; t += 4) panel_product<T, 4>(m, p, next, a, terms, t, out, stride);
    for (; t + 2 <= a.rows; t += 2) panel_product<T, 2>(m, p, next, a, terms, t, out, stride);
    for (; t < a.rows; ++t) panel_product<T, 1>(m, p, next, a, terms, t, out, stride);
  }
}
#endif

template <Type T>
inline F load_weights(const uint8_t* p) {
  if constexpr (T == F32) return load(reinterpret_cast<const float*>(p));
  else if constexpr (T == F16) return load_f16(reinterpret_cast<const uint16_t*>(p));
  else return load_bf16(reinterpret_cast<const uint16_t*>(p));
}

// Four weight rows times N rows of activations: 16 lanes along the columns, merged at the end.
template <Type T, int R, int N>
inline void float_tile(const Matrix& m, int64_t r0, const Rows& a, int64_t t0, float* out, int64_t stride) {
  constexpr int size = layout_of(T).file_bytes;
  F acc[R][N];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < N; ++t) acc[r][t] = zero();
  int64_t k = 0;
  for (; k + 16 <= m.cols; k += 16) {
    F x[N];
    for (int t = 0; t < N; ++t) x[t] = load(a.x + (t0 + t) * a.cols + k);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      F w = load_weights<T>(m.data + ((r0 + r) * m.cols + k) * size);
      for (int t = 0; t < N; ++t) acc[r][t] = fma(w, x[t], acc[r][t]);
    }
  }
  if (k < m.cols) {  // the last columns, zeros behind them
    const int left = static_cast<int>(m.cols - k);
    for (int r = 0; r < R; ++r) {
      alignas(64) uint8_t end[64] = {};
      for (int i = 0; i < left * size; ++i) end[i] = m.data[((r0 + r) * m.cols + k) * size + i];
      F w = load_weights<T>(end);
      for (int t = 0; t < N; ++t) {
        float x[16] = {};
        for (int i = 0; i < left; ++i) x[i] = a.x[(t0 + t) * a.cols + k + i];
        acc[r][t] = fma(w, load(x), acc[r][t]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < N; ++t) out[(t0 + t) * stride + r0 + r] = merge(acc[r][t]);
}

constexpr int64_t kFloatRows = 32;  // weight rows that stay in cache while the tokens pass

template <Type T>
void matmul_float(const Matrix& m, const Rows& a, int64_t begin, int64_t end, float* out, int64_t stride) {
  for (int64_t from = begin; from < end; from += kFloatRows) {
    const int64_t to = from + kFloatRows < end ? from + kFloatRows : end;
    int64_t t = 0;
    for (; t + 4 <= a.rows; t += 4) {
      int64_t r = from;
      for (; r + 4 <= to; r += 4) float_tile<T, 4, 4>(m, r, a, t, out, stride);
      for (; r < to; ++r) float_tile<T, 1, 4>(m, r, a, t, out, stride);
    }
    for (; t < a.rows; ++t) {
      int64_t r = from;
      for (; r + 4 <= to; r += 4) float_tile<T, 4, 1>(m, r, a, t, out, stride);
      for (; r < to; ++r) float_tile<T, 1, 1>(m, r, a, t, out, stride);
    }
  }
}

template <Type T>
void unpack_packed(const Matrix& m, int64_t row, int8_t* codes, float* scales, float* minima) {
  constexpr Layout l = layout_of(T);
  constexpr int groups = 32 / l.group;
  const int64_t p = row / 16, r = row % 16;
  for (int64_t b = 0; b < m.cols / 32; ++b) {
    B w[8];
    F scale[2], minimum[2] = {zero(), zero()};
    unpack_block<T>(m.panel(p) + b * l.code_bytes, w);
    block_scales<T>(m.scales(p), b, scale, minimum);
    for (int v = 0; v < 8; ++v) {
      uint8_t bytes[64];
      bstore(bytes, w[v]);
      for (int j = 0; j < 4; ++j) codes[b * 32 + v * 4 + j] = static_cast<int8_t>(bytes[r * 4 + j] - l.zero);
    }
    for (int g = 0; g < groups; ++g) {
      float lanes[16];
      store(lanes, scale[g]);
      scales[b * groups + g] = lanes[r];
      store(lanes, minimum[g]);
      minima[b * groups + g] = lanes[r];
    }
  }
}

// A row's values: scale * code + minimum, rounded after each (law.py, Quantised.dequantize).
template <Type T>
void row_packed(const Matrix& m, int64_t row, float* out) {
  constexpr Layout l = layout_of(T);
  const int64_t p = row / 16, r = row % 16;
  for (int64_t b = 0; b < m.cols / 32; ++b) {
    B w[8];
    F scale[2], minimum[2];
    unpack_block<T>(m.panel(p) + b * l.code_bytes, w);
    block_scales<T>(m.scales(p), b, scale, minimum);
    float s[2][16], low[2][16];
    for (int g = 0; g < 32 / l.group; ++g) {
      store(s[g], scale[g]);
      if constexpr (has_minima(l.scales)) store(low[g], minimum[g]);
    }
    for (int v = 0; v < 8; ++v) {
      uint8_t bytes[64];
      bstore(bytes, w[v]);
      const int g = v * 4 / l.group;
      for (int j = 0; j < 4; ++j) {
        float x = static_cast<float>(bytes[r * 4 + j] - l.zero) * s[g][r];
        if constexpr (has_minima(l.scales)) x = x + low[g][r];
        out[b * 32 + v * 4 + j] = x;
      }
    }
  }
}

template <Type T>
void row_float(const Matrix& m, int64_t row, float* out) {
  constexpr int size = layout_of(T).file_bytes;
  const uint8_t* from = m.data + row * m.cols * size;
  int64_t k = 0;
  for (; k + 16 <= m.cols; k += 16) store(out + k, load_weights<T>(from + k * size));
  if (k == m.cols) return;
  alignas(64) uint8_t end[64] = {};
  for (int64_t i = 0; i < (m.cols - k) * size; ++i) end[i] = from[k * size + i];
  float last[16];
  store(last, load_weights<T>(end));
  for (int64_t i = k; i < m.cols; ++i) out[i] = last[i - k];
}
