// The same products in AMX tiles: up to 32 queries by 32 keys, or by 32 dimensions of the values.
// Included by attention.h where the instruction set has them.

// Tiles 0 to 3: sums, two of queries by two. 4 and 5: queries or patterns. 6 and 7: keys or values.
inline void configure_attention(int queries) {
  TileConfig c;
  const int first = queries < 16 ? queries : 16, second = queries - first;
  for (int i = 0; i < 8; ++i) c.row_bytes[i] = 64, c.rows[i] = 16;
  c.rows[0] = c.rows[1] = c.rows[4] = static_cast<uint8_t>(first);
  c.rows[2] = c.rows[3] = c.rows[5] = static_cast<uint8_t>(second ? second : 1);
  asm volatile("" ::"r"(&c) : "memory");  // gcc believes that the next line reads 8 bytes, not 64
  _tile_loadconfig(&c);
}

// Adds to the sums of tiles 0 to 3 the products of 32 columns.
template <bool two>
inline void add_products(const uint16_t* x, int64_t stride, const uint8_t* left, const uint8_t* right, int64_t row) {
  _tile_loadd(6, left, row);
  _tile_loadd(4, x, stride);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, right, row);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (two) {
    _tile_loadd(5, x + 8 * stride, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Writes the sums: tiles side by side, the second 16 queries below the first.
template <bool two>
inline void store_sums(float* out, int64_t stride) {
  _tile_stored(0, out, stride);
  _tile_stored(1, out + 16, stride);
  if constexpr (two) {
    _tile_stored(2, out + 4 * stride, stride);
    _tile_stored(3, out + 4 * stride + 16, stride);
  }
}

template <bool two>
inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (two) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

// `n` queries, at most 32, more than 16 where `two`; dimensions in multiples of 32. Strides are in bytes.
template <bool two>
inline void attend_tiles(int n, const float* const* q, float* const* z, const int64_t* position, int64_t window, const KvView& c, float* scratch) {
  const int D = c.head_dim;
  const int64_t begin = first_seen(position[0], window) / kPairs * kPairs, end = position[n - 1] / kPairs * kPairs + kPairs;
  const int64_t row = end - begin + 16;  // floats; not a multiple of a page, whose lines share a place in the cache
  uint8_t* room = kept_queries.room(kQueryTiles * (D * 2 + 128));
  uint16_t* queries = reinterpret_cast<uint16_t*>(room);
  float* sums = reinterpret_cast<float*>(room + kQueryTiles * D * 2);  // 32 queries x 32 dimensions
  for (int i = 0; i < n; ++i)
    for (int d = 0; d < D; d += 16) store_bf16(queries + i * D + d, load(q[i] + d));
  configure_attention(n);
  asm volatile("" ::: "memory");  // the compiler does not know that tile loads read what was just stored
  for (int64_t p = begin; p < end; p += 32) {
    const uint8_t *left = key_pairs(c, p, 0), *right = key_pairs(c, p + 16, 1);
    asm volatile("" ::: "memory");
    clear_sums<two>();
    for (int d = 0; d < D; d += kPairs) add_products<two>(queries + d, D * 2, left + d * 32, right + d * 32, 64);
    store_sums<two>(scratch + p - begin, row * 4);
  }
  const F root = set1(root_of(D));
  for (int i = 0; i < n; ++i) pattern_of<true>(scratch + i * row, begin, end, first_seen(position[i], window), position[i], root);
  asm volatile("" ::: "memory");
  for (int d = 0; d < D; d += 32) {
    clear_sums<two>();
    for (int64_t p = begin; p < end; p += kPairs) {
      int64_t apart;
      const uint8_t* values = value_pairs(c, p, d, 2, &apart);
      asm volatile("" ::: "memory");
      add_products<two>(reinterpret_cast<uint16_t*>(scratch) + p - begin, row * 4, values, values + 64, apart);
    }
    store_sums<two>(sums, 128);
    for (int i = 0; i < n; ++i)
      for (int half = 0; half < 32; half += 16) store(z[i] + d + half, add(load(sums + i * 32 + half), zero()));
  }
  _tile_release();
}
