// Attention over keys and values kept as bfloat16. Included by attention.h. The law: law.py,
// `pair_products`; positions in whole blocks of 32, with a pattern of zero where nothing is seen. What lies
// there in the cache is finite, for `store_pairs` stores nothing else among the values.

// The place of position `slot` in a block of 16 keys, and the row of values that it shares with its neighbour.
void store_pairs(const float* k, const float* v, int head_dim, int slot, uint16_t* keys, uint16_t* values) {
  bool finite = true;
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

inline const uint8_t* value_pairs(const KvView& c, int64_t position) {
  return c.values + c.pages[position / c.page_size] * c.value_stride + position % c.page_size * c.head_dim * 2;
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
    for (int b = 0; b < B; ++b) keys[b] = key_block(c, b < blocks ? p + b * 16 : p);
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
    const uint8_t* values = value_pairs(c, p) + d * 4;
    F even[N][V], odd[N][V];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) even[n][v] = odd[n][v] = zero();
    for (int i = 0; i < kPairs; i += 2) {
      F first[V], second[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) load_pairs(values + i * c.head_dim * 2 + v * 64, first[v], second[v]);
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
