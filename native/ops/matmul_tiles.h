// Products of many rows in AMX tiles. Included by matmul.h where the instruction set has them.
//
// A tile of weights is a group of a panel as signed codes (columns / 4 rows of 64 bytes), a tile of
// activations 16 tokens x a group. Their product is exact; the float chain over groups is the law's.

constexpr int64_t kTileRowsFrom = 6;  // below, dots of single rows are faster

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3: sums, 16 tokens x 16 weight rows. 4 and 5: activations. 6 and 7: weights.
template <int group>
inline void configure_tiles() {
  TileConfig c;
  for (int i = 0; i < 4; ++i) c.rows[i] = 16, c.row_bytes[i] = 64;
  for (int i = 4; i < 6; ++i) c.rows[i] = 16, c.row_bytes[i] = group;
  for (int i = 6; i < 8; ++i) c.rows[i] = group / 4, c.row_bytes[i] = 64;
  asm volatile("" ::"r"(&c) : "memory");  // gcc believes that the next line reads 8 bytes, not 64
  _tile_loadconfig(&c);
}

struct TilePanel {
  int8_t* codes;   // [group][columns / 4][64]
  float* scales;   // [group][16]
  float* minima;
  int32_t* sums;   // four tiles of products
  float* main;     // one tile of results
};

inline TilePanel panel_for(int64_t cols, int64_t groups) {
  uint8_t* at = kept_tiles.room(cols * 16 + groups * 128 + 5 * 1024);
  const auto take = [&](int64_t bytes) { uint8_t* p = at; at += bytes; return p; };
  return {reinterpret_cast<int8_t*>(take(cols * 16)), reinterpret_cast<float*>(take(groups * 64)), reinterpret_cast<float*>(take(groups * 64)),
          reinterpret_cast<int32_t*>(take(4096)), reinterpret_cast<float*>(at)};
}

template <Type T>
inline void expand_panel(const Matrix& m, int64_t p, const TilePanel& out, int64_t begin, int64_t end) {
  constexpr Layout l = layout_of(T);
  constexpr int groups = 32 / l.group;
  const uint8_t *codes = m.panel(p), *scales = m.scales(p);
  const int64_t next = p + 1 < m.panels() ? m.panel_size() : 0;
  const __m512i zero_code = _mm512_set1_epi8(static_cast<char>(l.zero));
  for (int64_t b = begin; b < end; ++b) {
    B w[8];
    F scale[2], minimum[2];
    ask_ahead<T>(codes, scales, b, next);
    unpack_block<T>(codes + b * l.code_bytes, w);
    block_scales<T>(scales, b, scale, minimum);
    for (int v = 0; v < 8; ++v) _mm512_store_si512(out.codes + b * 512 + v * 64, _mm512_sub_epi8(w[v].v, zero_code));
    for (int g = 0; g < groups; ++g) {
      store(out.scales + (b * groups + g) * 16, scale[g]);
      if constexpr (has_minima(l.scales)) store(out.minima + (b * groups + g) * 16, minimum[g]);
    }
  }
}

// Adds a tile of integer sums to the chains of 16 tokens.
inline void add_group(const int32_t* sums, const float* weight_scale, const float* token_scales, F* main) {
  const F scale = load(weight_scale);
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) {
    const F dot = _mm512_cvtepi32_ps(_mm512_load_si512(sums + t * 16));
    main[t] = fma(dot, mul(scale, set1(token_scales[t])), main[t]);
  }
}

// Results of one tile of tokens: adds the minima's share and stores the first `tokens` rows.
template <Type T>
inline void finish_tile(const Matrix& m, int64_t p, const Rows& a, int64_t first, const TilePanel& w, int64_t tile, int64_t tokens, const F* main, float* out, int64_t stride) {
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) store(w.main + t * 16, main[t]);
  if constexpr (has_minima(layout_of(T).scales)) {
    F low[16];
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) low[t] = zero();
    constexpr int group = layout_of(T).group;
    const float* lows = a.lows + (first + tile) * (m.cols / 32) * 48;
    for (int64_t i = 0; i < m.cols / group; ++i) {
      const float* of = lows + (group == 32 ? i * 48 : i / 2 * 48 + 16 + i % 2 * 16);
      const F minimum = load(w.minima + i * 16);
#pragma GCC unroll 16
      for (int t = 0; t < 16; ++t) low[t] = fma(set1(of[t]), minimum, low[t]);
    }
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) store(w.main + t * 16, add(load(w.main + t * 16), low[t]));
  }
  for (int64_t t = 0; t < tokens; ++t) store_panel(m, p, out + (tile * 16 + t) * stride, load(w.main + t * 16));
}

// One panel times `tokens` tokens from tile `first` on, four groups a step. The float work of a step runs beside
// the tile work of the next, and its four stores come together (measured: fastest).
template <Type T>
inline void tiles_product(const Matrix& m, int64_t p, const Rows& a, int64_t first, const TilePanel& w, int64_t tokens, float* out, int64_t stride) {
  constexpr int group = layout_of(T).group, size = 16 * group;  // bytes of a tile of weights
  // Two groups of 16 columns lie in one block of activations, and have one scale there.
  constexpr auto codes_at = [](int i) { return group == 32 ? i * 512 : i / 2 * 512 + i % 2 * 16; };
  constexpr auto scale_at = [](int i) { return i * group / 32 * 16; };
  const int64_t groups = m.cols / group, blocks = m.cols / 32, tiles = (tokens + 15) / 16;
  const int64_t steps = (groups + 3) / 4, last = groups - (steps - 1) * 4;
  constexpr int64_t bite = 4 * group / 32;  // blocks of a step
  expand_panel<T>(m, p, w, 0, bite < blocks ? bite : blocks);
  asm volatile("" ::: "memory");
  F main[16];
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) main[t] = zero();
  const float* s = a.scales;        // of the groups whose sums wait
  const float* scales = w.scales;
  int64_t waiting = 0;              // how many: 0 to 4
// clang-format off
#define VITRAL_GROUP(i, ta, tb)                                \
  if (i < n) {                                                 \
    _tile_zero(i);                                             \
    _tile_loadd(ta, x + codes_at(i), 32);                      \
    _tile_loadd(tb, codes + i * size, 64);                     \
    _tile_dpbssd(i, ta, tb);                                   \
  }                                                            \
  if (i < waiting) add_group(w.sums + i * 256, scales + i * 16, s + scale_at(i), main);
  // clang-format on
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t g = step * 4, n = step + 1 < steps ? 4 : last, block = (first + tile) * blocks + g * group / 32;
      const int8_t *x = a.codes + block * 512, *codes = w.codes + g * size;
      // The rows of the result lie far apart: fetch their lines before they are written.
      if (step == 0)
        for (int64_t t = tile * 16; t < tile * 16 + 16 && t < tokens; ++t) __builtin_prefetch(out + t * stride + p * 16, 1);
      if (tile == 0 && step + 1 < steps) {
        const int64_t from = (step + 1) * bite, to = from + bite;
        expand_panel<T>(m, p, w, from, to < blocks ? to : blocks);
        asm volatile("" ::: "memory");  // the compiler does not know that tile loads read what was just stored
      }
      VITRAL_GROUP(0, 4, 6)
      VITRAL_GROUP(1, 5, 7)
      VITRAL_GROUP(2, 4, 6)
      VITRAL_GROUP(3, 5, 7)
      if (step == 0 && tile > 0) {
        finish_tile<T>(m, p, a, first, w, tile - 1, 16, main, out, stride);
#pragma GCC unroll 16
        for (int t = 0; t < 16; ++t) main[t] = zero();
      }
      _tile_stored(0, w.sums, 64);
      if (n > 1) _tile_stored(1, w.sums + 256, 64);
      if (n > 2) _tile_stored(2, w.sums + 512, 64);
      if (n > 3) _tile_stored(3, w.sums + 768, 64);
      s = a.scales + block * 16, scales = w.scales + g * 16, waiting = n;
    }
#undef VITRAL_GROUP
  for (int64_t i = 0; i < waiting; ++i) add_group(w.sums + i * 256, scales + i * 16, s + scale_at(static_cast<int>(i)), main);
  finish_tile<T>(m, p, a, first, w, tiles - 1, tokens - (tiles - 1) * 16, main, out, stride);
}

constexpr int64_t kTileBytes = 768 * 1024;  // activations that stay in the second cache while panels pass

template <Type T>
void matmul_tiles(const Matrix& m, const Rows& a, int64_t begin, int64_t end, float* out, int64_t stride) {
  configure_tiles<layout_of(T).group>();
  const TilePanel panel = panel_for(m.cols, m.cols / layout_of(T).group);
  const int64_t fit = kTileBytes / (16 * m.cols), most = fit < 4 ? 4 : fit, all = (a.rows + 15) / 16;
  for (int64_t first = 0; first < all; first += most) {
    const int64_t tiles = all - first < most ? all - first : most, rest = a.rows - first * 16, count = rest < tiles * 16 ? rest : tiles * 16;
    for (int64_t p = begin; p < end; ++p) {
      tiles_product<T>(m, p, a, first, panel, count, out + first * 16 * stride, stride);
    }
  }
  _tile_release();
}
