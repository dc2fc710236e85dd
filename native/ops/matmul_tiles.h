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

// Tiles 0 and 1: sums, 16 tokens x 16 weight rows. 2 and 3: activations. 4 and 5: weights.
template <int group>
inline void configure_tiles() {
  TileConfig c;
  for (int i = 0; i < 2; ++i) {
    c.rows[i] = 16, c.row_bytes[i] = 64;
    c.rows[i + 2] = 16, c.row_bytes[i + 2] = group;
    c.rows[i + 4] = group / 4, c.row_bytes[i + 4] = 64;
  }
  _tile_loadconfig(&c);
}

// Activations in tile order; tokens behind the last are zero.
struct TileRows {
  int64_t tiles, groups;
  int8_t* codes;   // [tile][group][16][columns]
  float* scales;   // [tile][group][16]
  float* lows;     // the same, where the type has minima
};

struct TilePanel {
  int8_t* codes;   // [group][columns / 4][64]
  float* scales;   // [group][16]
  float* minima;
  int32_t* sums;   // two tiles of products
  float* main;     // one tile of results
};

template <Type T>
inline void lay_out(const Matrix& m, const Rows& a, const Terms& terms, TileRows* rows, TilePanel* panel) {
  constexpr Layout l = layout_of(T);
  constexpr bool low = has_minima(l.scales);
  const int64_t groups = m.cols / l.group, tiles = (a.rows + 15) / 16;
  const int64_t all = tiles * groups * 16;
  uint8_t* at = kept_tiles.room(tiles * 16 * m.cols + all * 4 * (low ? 2 : 1) + m.cols * 16 + groups * 128 + 3 * 1024);
  const auto take = [&](int64_t bytes) { uint8_t* p = at; at += bytes; return p; };
  *rows = {tiles, groups, reinterpret_cast<int8_t*>(take(tiles * 16 * m.cols)), reinterpret_cast<float*>(take(all * 4)),
           low ? reinterpret_cast<float*>(take(all * 4)) : nullptr};
  panel->codes = reinterpret_cast<int8_t*>(take(m.cols * 16));
  panel->scales = reinterpret_cast<float*>(take(groups * 64));
  panel->minima = reinterpret_cast<float*>(take(groups * 64));
  panel->sums = reinterpret_cast<int32_t*>(take(2048));
  panel->main = reinterpret_cast<float*>(take(1024));
  for (int64_t t = 0; t < tiles * 16; ++t) {
    const int64_t tile = t / 16, row = t % 16;
    int8_t* codes = rows->codes + (tile * groups * 16 + row) * l.group;
    float* scales = rows->scales + tile * groups * 16 + row;
    for (int64_t g = 0; g < groups; ++g) {
      if (t < a.rows) {
        std::memcpy(codes + g * 16 * l.group, a.codes + t * m.cols + g * l.group, l.group);
        scales[g * 16] = a.scales[t * (m.cols / 32) + g * l.group / 32];
        if constexpr (low) rows->lows[tile * groups * 16 + row + g * 16] = terms.lows[t * groups + g];
      } else {
        std::memset(codes + g * 16 * l.group, 0, l.group);
        scales[g * 16] = 0.0f;
        if constexpr (low) rows->lows[tile * groups * 16 + row + g * 16] = 0.0f;
      }
    }
  }
}

template <Type T>
inline void expand_panel(const Matrix& m, int64_t p, const TilePanel& out) {
  constexpr Layout l = layout_of(T);
  constexpr int groups = 32 / l.group;
  const uint8_t *codes = m.panel(p), *scales = m.scales(p);
  const __m512i zero_code = _mm512_set1_epi8(static_cast<char>(l.zero));
  for (int64_t b = 0; b < m.cols / 32; ++b) {
    B w[8];
    F scale[2], minimum[2];
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

template <Type T>
inline void tile_product(const Matrix& m, int64_t p, const TileRows& rows, const TilePanel& w, int64_t tile, int64_t tokens, float* out, int64_t stride) {
  constexpr Layout l = layout_of(T);
  constexpr int group = l.group;
  const int8_t* x = rows.codes + tile * rows.groups * 16 * group;
  const float* s = rows.scales + tile * rows.groups * 16;
  F main[16];
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) main[t] = zero();
  // The float work of a group runs beside the tile work of the next.
  const auto multiply_even = [&](int64_t g) {
    _tile_zero(0);
    _tile_loadd(2, x + g * 16 * group, group);
    _tile_loadd(4, w.codes + g * 16 * group, 64);
    _tile_dpbssd(0, 2, 4);
  };
  const auto multiply_odd = [&](int64_t g) {
    _tile_zero(1);
    _tile_loadd(3, x + g * 16 * group, group);
    _tile_loadd(5, w.codes + g * 16 * group, 64);
    _tile_dpbssd(1, 3, 5);
  };
  multiply_even(0);
  _tile_stored(0, w.sums, 64);
  int64_t g = 1;
  for (; g + 1 < rows.groups; g += 2) {
    multiply_odd(g);
    add_group(w.sums, w.scales + (g - 1) * 16, s + (g - 1) * 16, main);
    _tile_stored(1, w.sums + 256, 64);
    multiply_even(g + 1);
    add_group(w.sums + 256, w.scales + g * 16, s + g * 16, main);
    _tile_stored(0, w.sums, 64);
  }
  if (g < rows.groups) {
    multiply_odd(g);
    add_group(w.sums, w.scales + (g - 1) * 16, s + (g - 1) * 16, main);
    _tile_stored(1, w.sums + 256, 64);
    add_group(w.sums + 256, w.scales + g * 16, s + g * 16, main);
  } else {
    add_group(w.sums, w.scales + (g - 1) * 16, s + (g - 1) * 16, main);
  }
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) store(w.main + t * 16, main[t]);
  if constexpr (has_minima(l.scales)) {
    F low[16];
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) low[t] = zero();
    const float* lows = rows.lows + tile * rows.groups * 16;
    for (int64_t i = 0; i < rows.groups; ++i) {
      const F minimum = load(w.minima + i * 16);
#pragma GCC unroll 16
      for (int t = 0; t < 16; ++t) low[t] = fma(set1(lows[i * 16 + t]), minimum, low[t]);
    }
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) store(w.main + t * 16, add(load(w.main + t * 16), low[t]));
  }
  for (int64_t t = 0; t < tokens; ++t) store_panel(m, p, out + (tile * 16 + t) * stride, load(w.main + t * 16));
}

template <Type T>
void matmul_tiles(const Matrix& m, const Rows& a, const Terms& terms, int64_t begin, int64_t end, float* out, int64_t stride) {
  TileRows rows;
  TilePanel panel;
  lay_out<T>(m, a, terms, &rows, &panel);
  configure_tiles<layout_of(T).group>();
  for (int64_t p = begin; p < end; ++p) {
    expand_panel<T>(m, p, panel);
    for (int64_t i = 0; i < rows.tiles; ++i)
      tile_product<T>(m, p, rows, panel, i, a.rows - i * 16 < 16 ? a.rows - i * 16 : 16, out, stride);
  }
  _tile_release();
}
