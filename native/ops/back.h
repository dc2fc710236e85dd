// A matrix read backwards. Included inside an instruction set's namespace, behind matmul.h.

// Values of the 16 rows of a panel in 32 columns from b * 32 on, scale * code + minimum, rounded after each
// (law.py, Quantised.dequantize): out [32 columns][16 rows].
template <Type T>
inline void panel_values(const Matrix& m, int64_t p, int64_t b, float* out) {
  constexpr Layout l = layout_of(T);
  B w[8];
  F scale[2], minimum[2];
  unpack_block<T>(m.panel(p) + b * l.code_bytes, w);
  block_scales<T>(m.scales(p), b, scale, minimum);
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    alignas(64) uint32_t rows[16];  // four columns of a row, the first in the lowest byte
    alignas(64) float codes[16];
    bstore(reinterpret_cast<uint8_t*>(rows), w[v]);
    const int g = v * 4 / l.group;
    for (int j = 0; j < 4; ++j) {
      for (int r = 0; r < 16; ++r) codes[r] = static_cast<float>(static_cast<int32_t>(rows[r] >> (8 * j) & 255) - l.zero);
      F x = mul(load(codes), scale[g]);
      if constexpr (has_minima(l.scales)) x = add(x, minimum[g]);
      store(out + (v * 4 + j) * 16, x);
    }
  }
}

// The same of a float type, whose last columns may be fewer: zeros behind them, and below the last row.
template <Type T>
inline void float_values(const Matrix& m, int64_t p, int64_t b, float* out) {
  constexpr int size = layout_of(T).file_bytes;
  const int64_t n = m.cols - b * 32 < 32 ? m.cols - b * 32 : 32;
  for (int r = 0; r < 16; ++r) {
    float row[32] = {};
    if (p * 16 + r < m.rows) {
      alignas(64) uint8_t bytes[32 * size] = {};
      const uint8_t* from = m.data + ((p * 16 + r) * m.cols + b * 32) * size;
      for (int64_t i = 0; i < n * size; ++i) bytes[i] = from[i];
      store(row, load_weights<T>(bytes));
      store(row + 16, load_weights<T>(bytes + 16 * size));
    }
    for (int c = 0; c < 32; ++c) out[c * 16 + r] = row[c];
  }
}

// Sums over `rows` rows of C columns for V times 16 tokens: fma, rows ascending.
template <int C, int V>
inline void back_tile(const float* w, int64_t rows, const float* x, int64_t lanes, float* out) {
  F sums[C][V];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[c][v] = zero();
  for (int64_t r = 0; r < rows; ++r) {
    const float* at = w + r / 16 * 512 + r % 16;
    F tokens[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) tokens[v] = load(x + r * lanes + v * 16);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const F one = set1(at[c * 16]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[c][v] = fma(tokens[v], one, sums[c][v]);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + c * lanes + v * 16, sums[c][v]);
}

#if defined(__AVX512F__)
constexpr int kBackColumns = 8;  // with two registers of tokens: as many sums as fit, and hide what a fma waits
#else
constexpr int kBackColumns = 2;
#endif

template <Type T>
void back_block(const Matrix& m, int64_t first, int64_t rows, int64_t b, const float* x, int64_t lanes, float* out) {
  alignas(64) float w[kBackRows * 32];
  for (int64_t p = 0; p * 16 < rows; ++p) {
    if constexpr (is_float(T)) float_values<T>(m, first / 16 + p, b, w + p * 512);
    else {
      // Panels lie far apart, so nobody else fetches the next columns of each.
      const uint8_t* next = m.panel(first / 16 + p) + (b + 1) * layout_of(T).code_bytes;
      for (int i = 0; i < layout_of(T).code_bytes && (b + 1) * 32 < m.cols; i += 64) __builtin_prefetch(next + i);
      panel_values<T>(m, first / 16 + p, b, w + p * 512);
    }
  }
  for (int64_t t = 0; t < lanes; t += 32)
    for (int c = 0; c < 32; c += kBackColumns) {
      if (lanes - t == 16) back_tile<kBackColumns, 1>(w + c * 16, rows, x + t, lanes, out + c * lanes + t);
      else back_tile<kBackColumns, 2>(w + c * 16, rows, x + t, lanes, out + c * lanes + t);
    }
}
