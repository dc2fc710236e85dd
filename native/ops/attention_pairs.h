// Attention over keys and values kept as bfloat16, or as bytes that become so. Included by attention.h. The law: law.py,
// `pair_products`; positions in whole blocks of 32, with a pattern of zero where nothing is seen. What lies
// there in the cache is finite, for `store_pairs` stores nothing else among the values.

// Position `slot` of a block of 16 keys and of one of values.
void store_pairs(const float* k, const float* v, int head_dim, int slot, uint16_t* keys, uint16_t* values) {
  bool finite = true;
  values += slot / 2 * head_dim * 2;  // the row that it shares with its neighbour
  for (int d = 0; d < head_dim; d += 16) {
    uint16_t half[16];
    const int m = head_dim - d < 16 ? head_dim - d : 16;
    store_bf16(half, load_some(v + d, m));
    for (int i = 0; i < m; ++i) {
      finite = finite && (half[i] & 0x7F80) != 0x7F80;
      values[(d + i) * 2 + slot % 2] = half[i];
    }
    store_bf16(half, load_some(k + d, m));
    for (int i = 0; i < m; ++i) keys[(d + i) / 2 * 32 + slot * 2 + i % 2] = half[i];
  }
  // Who sees this position gets NaN; who does not, in the same block, is untouched.
  for (int d = 0; !finite && d < head_dim; ++d) values[d * 2 + slot % 2] = 0, keys[d / 2 * 32 + slot * 2 + d % 2] = 0x7FC0;
}

// The same as 8-bit codes with a scale for each 32 dimensions.
void store_bytes(const float* k, const float* v, int head_dim, int slot, uint8_t* keys, uint8_t* values) {
  const int wide = (head_dim + 15) / 16 * 16, blocks = (head_dim + 31) / 32;
  uint16_t* key_scales = reinterpret_cast<uint16_t*>(keys + wide * kKeyBlock) + slot;
  uint16_t* value_scales = reinterpret_cast<uint16_t*>(values + wide * kKeyBlock) + slot;
  const auto codes_of = [&](const float* x, int b, int8_t* codes) {
    float some[32] = {}, scale[16] = {};
    int32_t sums[2];
    uint16_t half[16];
    for (int d = b * 32; d < head_dim && d < b * 32 + 32; ++d) some[d - b * 32] = x[d];
    quantise(some, 32, codes, scale, sums);
    store_f16(half, load(scale));
    return half[0];
  };
  bool finite = true;
  for (int b = 0; b < blocks; ++b) {
    int8_t codes[32];
    const int most = wide - b * 32 < 32 ? wide - b * 32 : 32;
    value_scales[b * kKeyBlock] = codes_of(v, b, codes);
    finite = finite && (value_scales[b * kKeyBlock] & 0x7C00) != 0x7C00;
    std::memcpy(values + slot * wide + b * 32, codes, most);
    key_scales[b * kKeyBlock] = codes_of(k, b, codes);
    for (int d = 0; d < most; ++d) keys[(b * 32 + d) * kKeyBlock + slot] = static_cast<uint8_t>(codes[d]);
  }
  for (int b = 0; !finite && b < blocks; ++b) {
    value_scales[b * kKeyBlock] = 0, key_scales[b * kKeyBlock] = 0x7E00;
    std::memset(values + slot * wide + b * 32, 0, wide - b * 32 < 32 ? wide - b * 32 : 32);
  }
}

inline thread_local Scratch kept_keys, kept_values;

// 16 keys from position p on, [D / 2][16][2]; bytes become bfloat16 in place number `at` of eight.
inline const uint8_t* key_pairs(const KvView& c, int64_t p, int at) {
  const uint8_t* block = key_block(c, p);
  if (c.type == KvType::bf16) return block;
  const int wide = (c.head_dim + 15) / 16 * 16;
  uint8_t* out = kept_keys.room(8 * wide * 32) + at * wide * 32;
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(block + wide * kKeyBlock);
  for (int d = 0; d < c.head_dim; d += 2) {
    const F scale = load_f16(scales + d / 32 * kKeyBlock);
    store_pairs_of(out + d * 32, mul(load_s8(block + d * 16), scale), mul(load_s8(block + d * 16 + 16), scale));
  }
  return out;
}

// Values of 32 positions from p on, `vectors` x 16 dimensions from d on: rows of two positions, `row` bytes apart.
inline const uint8_t* value_pairs(const KvView& c, int64_t p, int d, int vectors, int64_t* row) {
  if (c.type == KvType::bf16) {
    *row = c.head_dim * 4;
    return value_block(c, p) + d * 4;
  }
  const int wide = (c.head_dim + 15) / 16 * 16;
  *row = vectors * 64;
  uint8_t* out = kept_values.room(16 * *row);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* block = value_block(c, p + half * kKeyBlock);
    for (int v = 0; v < vectors; ++v) {
      float scales[16];
      store(scales, load_f16(reinterpret_cast<const uint16_t*>(block + wide * kKeyBlock) + (d + v * 16) / 32 * kKeyBlock));
      for (int i = 0; i < kKeyBlock; i += 2) {
        const uint8_t* codes = block + i * wide + d + v * 16;
        store_pairs_of(out + (half * 8 + i / 2) * *row + v * 64, mul(load_s8(codes), set1(scales[i])), mul(load_s8(codes + wide), set1(scales[i + 1])));
      }
    }
  }
  return out;
}

// x * y + z while subnormal numbers are zero. With `careful`, also where that is decided before rounding: 2^32 times
// larger nothing is subnormal, and what is 2^-126 there is so here.
template <bool careful>
inline F fma_flushed(F x, F y, F z) {
  const F r = fma(x, y, z);
  if constexpr (!careful) return r;
  const F up = set1(0x1p32f), large = fma(mul(x, up), y, mul(z, up)), size = abs(large);
  return where_less(size, set1(0x1p-94f), r, where_less(size, set1(0x1.000002p-94f), mul(large, set1(0x1p-32f)), r));
}

// Products of N queries with the keys of positions [begin, end), multiples of 16, a row of results for each.
template <int N, bool careful>
[[gnu::noinline]] void dots_of_pairs(const float* const* q, const KvView& c, int64_t begin, int64_t end, float* const* rows) {
  constexpr int B = N == 1 ? 4 : 1;  // blocks of keys at once: enough chains to hide their latency
  for (int64_t p = begin; p < end;) {
    const int blocks = end - p >= B * 16 ? B : 1;
    const uint8_t* keys[B];
    for (int b = 0; b < B; ++b) keys[b] = key_pairs(c, b < blocks ? p + b * 16 : p, b);
    F sum[N][B];
    for (int n = 0; n < N; ++n)
      for (int b = 0; b < B; ++b) sum[n][b] = zero();
    for (int from = 0; from < c.head_dim; from += kPairs) {
      const int to = from + kPairs < c.head_dim ? from + kPairs : c.head_dim;
      F even[N][B], odd[N][B];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) even[n][b] = odd[n][b] = zero();
      for (int d = from; d < to; d += 2) {
        F first[B], second[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) load_pairs(keys[b] + d * 32, first[b], second[b]);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          const F x = set1(q[n][d]), y = set1(q[n][d + 1]);
#pragma GCC unroll 8
          for (int b = 0; b < B; ++b) even[n][b] = fma_flushed<careful>(x, first[b], even[n][b]), odd[n][b] = fma_flushed<careful>(y, second[b], odd[n][b]);
        }
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) sum[n][b] = add(sum[n][b], add(even[n][b], odd[n][b]));
    }
    for (int n = 0; n < N; ++n)
      for (int b = 0; b < blocks; ++b) store(rows[n] + p + b * 16 - begin, sum[n][b]);
    p += blocks * 16;
  }
}

// Values of 16 * V dimensions from d on, mixed by the patterns of N queries over positions [begin, end), multiples of 32.
template <int N, int V, bool careful>
inline void mix_pairs_at(const float* const* patterns, const KvView& c, int64_t begin, int64_t end, int d, int count, float* const* z) {
  F sum[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) sum[n][v] = zero();
  for (int64_t p = begin; p < end; p += kPairs) {
    int64_t row;
    const uint8_t* values = value_pairs(c, p, d, V, &row);
    F even[N][V], odd[N][V];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) even[n][v] = odd[n][v] = zero();
    for (int i = 0; i < kPairs; i += 2) {
      F first[V], second[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) load_pairs(values + i / 2 * row + v * 64, first[v], second[v]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const F x = set1(patterns[n][p - begin + i]), y = set1(patterns[n][p - begin + i + 1]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) even[n][v] = fma_flushed<careful>(x, first[v], even[n][v]), odd[n][v] = fma_flushed<careful>(y, second[v], odd[n][v]);
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[n][v] = add(sum[n][v], add(even[n][v], odd[n][v]));
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) store_some(z[n] + d + v * 16, count, add(sum[n][v], zero()));
}

template <int N, bool careful>
[[gnu::noinline]] void mix_pairs(const float* const* patterns, const KvView& c, int64_t begin, int64_t end, float* const* z) {
  constexpr int V = N == 1 ? 4 : 1;
  int d = 0;
  for (; d + 16 * V <= c.head_dim; d += 16 * V) mix_pairs_at<N, V, careful>(patterns, c, begin, end, d, 16, z);
  for (; d < c.head_dim; d += 16) mix_pairs_at<N, 1, careful>(patterns, c, begin, end, d, c.head_dim - d < 16 ? c.head_dim - d : 16, z);
}

inline const float* rounded(const float* x, int n, float* out) {
  for (int i = 0; i < n; i += 16) store_some(out + i, n - i < 16 ? n - i : 16, round_bf16(load_some(x + i, n - i < 16 ? n - i : 16)));
  return out;
}

// From dot products of positions [begin, end) to the pattern of a query that sees [first, last], in place:
// as floats that are bfloat16, or `packed` as those.
template <bool packed>
inline void pattern_of(float* row, int64_t begin, int64_t end, int64_t first, int64_t last, F root) {
  F most = set1(-__builtin_inff());
  for (int64_t p = begin; p < end; p += 16) {
    const F seen = only_seen(mul(load(row + p - begin), root), p, first, last);
    store(row + p - begin, seen);
    most = max(seen, most);
  }
  const F inverse = set1(1.0f / exponentials(row, begin, end, largest(most)));
  for (int64_t p = begin; p < end; p += 16) {
    const F x = mul(load(row + p - begin), inverse);
    if constexpr (packed) store_bf16(reinterpret_cast<uint16_t*>(row) + p - begin, x);
    else store(row + p - begin, round_bf16(x));
  }
}

#if defined(__AVX512F__)
constexpr int kPairQueries = 8;
#else
constexpr int kPairQueries = 2;
#endif

template <int N>
inline void attend_pairs(const float* const* q, float* const* z, const int64_t* position, int64_t window, const KvView& c, float* scratch) {
  const int64_t begin = first_seen(position[0], window) / kPairs * kPairs, end = position[N - 1] / kPairs * kPairs + kPairs;
  float* rows[N];
  const float *patterns[N], *queries[N];
  float* room = reinterpret_cast<float*>(kept_queries.room(N * c.head_dim * 4));
  for (int n = 0; n < N; ++n) {
    patterns[n] = rows[n] = scratch + n * (end - begin);
    queries[n] = rounded(q[n], c.head_dim, room + n * c.head_dim);
  }
  without_subnormals([&](auto how) { dots_of_pairs<N, decltype(how)::careful>(queries, c, begin, end, rows); });
  const F root = set1(root_of(c.head_dim));
  for (int n = 0; n < N; ++n) pattern_of<false>(rows[n], begin, end, first_seen(position[n], window), position[n], root);
  without_subnormals([&](auto how) { mix_pairs<N, decltype(how)::careful>(patterns, c, begin, end, z); });
}

inline void one_score_of_pairs(const float* q, const KvView& c, int64_t end, float* out) {
  const float* query = rounded(q, c.head_dim, reinterpret_cast<float*>(kept_queries.room(c.head_dim * 4)));
  without_subnormals([&](auto how) { dots_of_pairs<1, decltype(how)::careful>(&query, c, 0, end, &out); });
}

inline void mix_one_of_pairs(const float* pattern, const KvView& c, int64_t first, int64_t last, float* z) {
  const int64_t begin = first / kPairs * kPairs, end = last / kPairs * kPairs + kPairs;
  float* row = reinterpret_cast<float*>(kept_queries.room((end - begin) * 4));
  for (int64_t p = begin; p < end; ++p) row[p - begin] = p < first || p > last ? 0.0f : pattern[p];
  const float* weights = rounded(row, static_cast<int>(end - begin), row);
  without_subnormals([&](auto how) { mix_pairs<1, decltype(how)::careful>(&weights, c, begin, end, &z); });
}
