// Attention of queries over the pages of one key/value head. Included inside an instruction set's
// namespace. The law: law.py, `attention_scores`, `softmax`, `attention_z`; positions are absolute, so
// what a window hides may be skipped.

template <KvType K>
inline F load_kv(const uint8_t* p, int64_t i) {
  if constexpr (K == KvType::f32) return load(reinterpret_cast<const float*>(p) + i);
  else return load_f16(reinterpret_cast<const uint16_t*>(p) + i);
}
inline int kv_size(KvType k) { return k == KvType::f32 ? 4 : 2; }

// The block of 16 keys or values that holds a position.
inline int64_t block_in_page(const KvView& c, int64_t position) {
  return position % c.page_size / kKeyBlock * kv_block_bytes(c.type, c.head_dim);
}
inline const uint8_t* key_block(const KvView& c, int64_t position) {
  return c.keys + c.pages[position / c.page_size] * c.key_stride + block_in_page(c, position);
}
inline const uint8_t* value_block(const KvView& c, int64_t position) {
  return c.values + c.pages[position / c.page_size] * c.value_stride + block_in_page(c, position);
}
inline const uint8_t* value_row(const KvView& c, int64_t position) {  // as f32 or f16, where the rows of a page follow each other
  return value_block(c, position) + position % kKeyBlock * c.head_dim * kv_size(c.type);
}
inline int64_t first_seen(int64_t position, int64_t window) { return window && position >= window ? position - window + 1 : 0; }

void store_pairs(const float* k, const float* v, int head_dim, int slot, uint16_t* keys, uint16_t* values);
void store_bytes(const float* k, const float* v, int head_dim, int slot, uint8_t* keys, uint8_t* values);

void store_kv(const float* k, const float* v, KvType type, int head_dim, int slot, uint8_t* keys, uint8_t* values) {
  // keys and values: the blocks of 16 that hold the slot (0..15).
  if (type == KvType::bf16)
    return store_pairs(k, v, head_dim, slot, reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values));
  if (type == KvType::q8_0) return store_bytes(k, v, head_dim, slot, keys, values);
  values += slot * head_dim * kv_size(type);
  for (int d = 0; d < head_dim; ++d) {
    if (type == KvType::f32) {
      reinterpret_cast<float*>(keys)[d * 16 + slot] = k[d];
      reinterpret_cast<float*>(values)[d] = v[d];
      continue;
    }
    uint16_t half[16];
    if (d % 16 == 0) {
      const int m = head_dim - d < 16 ? head_dim - d : 16;
      store_f16(half, load_some(k + d, m));
      for (int i = 0; i < m; ++i) reinterpret_cast<uint16_t*>(keys)[(d + i) * 16 + slot] = half[i];
      store_f16(half, load_some(v + d, m));
      for (int i = 0; i < m; ++i) reinterpret_cast<uint16_t*>(values)[d + i] = half[i];
    }
  }
}

// How much work is in flight at once: with 32 registers of 16 floats, up to 16 sums. A chain of fma
// waits 4 cycles for itself, so fewer than 8 chains leave the two multipliers idle.
#if defined(__AVX512F__)
constexpr int key_blocks_for(int queries) { return queries == 1 ? 8 : queries <= 4 ? 4 : 2; }
constexpr int vectors_for(int queries) { return queries <= 4 ? 4 : 2; }
#else
constexpr int key_blocks_for(int queries) { return queries == 1 ? 4 : queries <= 3 ? 2 : 1; }
constexpr int vectors_for(int queries) { return queries == 1 ? 4 : queries <= 3 ? 2 : 1; }
#endif

// Scores of N queries over B blocks of 16 keys.
template <KvType K, int N, int B>
inline void score_blocks(const float* const* q, const uint8_t* const* keys, int head_dim, F (*out)[B]) {
  F sum[N][B];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) sum[n][b] = zero();
  for (int d = 0; d < head_dim; ++d) {
    F k[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) k[b] = load_kv<K>(keys[b], d * 16);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      F x = set1(q[n][d]);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) sum[n][b] = fma(x, k[b], sum[n][b]);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) out[n][b] = sum[n][b];
}

// Lanes whose position is outside [low, high] become minus infinity.
inline F only_seen(F scores, int64_t position, int64_t low, int64_t high) {
  if (position >= low && position + 15 <= high) return scores;
  float x[16];
  store(x, scores);
  for (int i = 0; i < 16; ++i)
    if (position + i < low || position + i > high) x[i] = -__builtin_inff();
  return load(x);
}

inline float root_of(int head_dim) { return static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(head_dim))); }

// exp(x - most) of positions [begin, end), begin and end multiples of 16; returns their sum.
inline float exponentials(float* row, int64_t begin, int64_t end, float most) {
  float total = 0.0f;
  for (int64_t start = begin / kSplit * kSplit; start < end; start += kSplit) {
    const int64_t from = start < begin ? begin : start, to = start + kSplit < end ? start + kSplit : end;
    F lanes = zero();
    for (int64_t p = from; p < to; p += 16) {
      F e = exp_law(sub(load(row + p - begin), set1(most)));
      store(row + p - begin, e);
      lanes = add(lanes, e);
    }
    total = total + merge(lanes);
  }
  return total;
}

// exp(x - most) over their sum.
inline void normalise(float* row, int64_t begin, int64_t end, float most) {
  const F inverse = set1(1.0f / exponentials(row, begin, end, most));
  for (int64_t p = begin; p < end; p += 16) store(row + p - begin, mul(load(row + p - begin), inverse));
}

// Values of dimensions [d, d + 16 * V) mixed by the patterns of N queries over positions [low, high].
// patterns[n] is where position `base` of query n lies.
template <KvType K, int N, int V>
inline void mix_tile(const float* const* patterns, int64_t base, int64_t low, int64_t high, const KvView& c, int d, float* const* z) {
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) store(z[n] + d + v * 16, zero());
  const int64_t row = c.head_dim * kv_size(c.type);
  for (int64_t start = low / kSplit * kSplit; start <= high; start += kSplit) {
    F part[N][V];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) part[n][v] = zero();
    const int64_t to = start + kSplit - 1 < high ? start + kSplit - 1 : high;
    for (int64_t p = start < low ? low : start; p <= to;) {  // page by page
      const int64_t page_end = p / c.page_size * c.page_size + c.page_size, end = page_end <= to ? page_end : to + 1;
      for (const uint8_t* values = value_row(c, p); p < end; ++p, values += row) {
        F x[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) x[v] = load_kv<K>(values, d + v * 16);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          F w = set1(patterns[n][p - base]);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) part[n][v] = fma(w, x[v], part[n][v]);
        }
      }
    }
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < V; ++v) store(z[n] + d + v * 16, add(load(z[n] + d + v * 16), part[n][v]));
  }
}

// The same for dimensions that do not fill a vector.
template <KvType K>
inline void mix_rest(const float* pattern, int64_t base, int64_t low, int64_t high, const KvView& c, int d, float* z) {
  for (; d < c.head_dim; ++d) {
    float sum = 0.0f;
    for (int64_t start = low / kSplit * kSplit; start <= high; start += kSplit) {
      float part = 0.0f;
      const int64_t from = start < low ? low : start, to = start + kSplit - 1 < high ? start + kSplit - 1 : high;
      for (int64_t p = from; p <= to; ++p) {
        float value;
        if constexpr (K == KvType::f32) value = reinterpret_cast<const float*>(value_row(c, p))[d];
        else {
          uint16_t half[16] = {reinterpret_cast<const uint16_t*>(value_row(c, p))[d]};
          float lanes[16];
          store(lanes, load_f16(half));
          value = lanes[0];
        }
        part = __builtin_fmaf(pattern[p - base], value, part);
      }
      sum = sum + part;
    }
    z[d] = sum;
  }
}

template <KvType K, int N>
inline void mix_queries(const float* const* patterns, int64_t base, int64_t low, int64_t high, const KvView& c, float* const* z) {
  int d = 0;
  constexpr int V = vectors_for(N);
  for (; d + V * 16 <= c.head_dim; d += V * 16) mix_tile<K, N, V>(patterns, base, low, high, c, d, z);
  for (; d + 16 <= c.head_dim; d += 16) mix_tile<K, N, 1>(patterns, base, low, high, c, d, z);
  for (int n = 0; d < c.head_dim && n < N; ++n) mix_rest<K>(patterns[n], base, low, high, c, d, z[n]);
}

template <int n>
struct Blocks { static constexpr int count = n; };

template <KvType K, int N>
inline void attend(const float* const* q, float* const* z, const int64_t* position, int64_t window, const KvView& c, float* scratch) {
  int64_t low = position[0], high = position[0];
  for (int n = 0; n < N; ++n) {
    const int64_t first = first_seen(position[n], window);
    low = first < low ? first : low;
    high = position[n] > high ? position[n] : high;
  }
  const int64_t begin = low / 16 * 16, end = high / 16 * 16 + 16;
  float* rows[N];
  const float* patterns[N];
  F most[N];
  for (int n = 0; n < N; ++n) {
    patterns[n] = rows[n] = scratch + n * (end - begin);
    most[n] = set1(-__builtin_inff());
  }
  const F root = set1(root_of(c.head_dim));
  auto score = [&](int64_t p, auto blocks) {
    constexpr int B = decltype(blocks)::count;
    const uint8_t* keys[B];
    for (int b = 0; b < B; ++b) keys[b] = key_block(c, p + b * 16);
    F s[N][B];
    score_blocks<K, N, B>(q, keys, c.head_dim, s);
    for (int n = 0; n < N; ++n)
      for (int b = 0; b < B; ++b) {
        F seen = only_seen(mul(s[n][b], root), p + b * 16, first_seen(position[n], window), position[n]);
        store(rows[n] + p + b * 16 - begin, seen);
        most[n] = max(seen, most[n]);
      }
  };
  constexpr int B = key_blocks_for(N);
  int64_t p = begin;
  for (; p + B * 16 <= end; p += B * 16) score(p, Blocks<B>{});
  for (; p < end; p += 16) score(p, Blocks<1>{});
  for (int n = 0; n < N; ++n) normalise(rows[n], begin, end, largest(most[n]));
  mix_queries<K, N>(patterns, begin, low, high, c, z);
}

inline thread_local Scratch kept_queries;
#include "attention_pairs.h"
#if defined(VITRAL_TILES)
#include "attention_tiles.h"
#endif

// `most` queries at a time, each with where it is, where its result goes, and its position.
template <int most, class Work>
inline void for_queries(const Queries& a, int head_dim, Work work) {
  const int total = a.tokens * a.group;
  for (int start = 0; start < total; start += most) {
    const float* q[most];
    float* z[most];
    int64_t position[most];
    const int n = total - start < most ? total - start : most;
    for (int i = 0; i < n; ++i) {
      const int token = (start + i) / a.group, head = (start + i) % a.group;
      q[i] = a.q + token * a.stride + head * head_dim;
      z[i] = a.z + token * a.stride + head * head_dim;
      position[i] = a.first + token;
    }
    work(n, q, z, position);
  }
}

inline void attention_of_pairs(const Queries& a, const KvView& c, float* scratch) {
#if defined(VITRAL_TILES)
  if (c.head_dim % 32 == 0)
    return for_queries<kQueryTiles>(a, c.head_dim, [&](int n, const float* const* q, float* const* z, const int64_t* position) {
      if (n > 16) attend_tiles<true>(n, q, z, position, a.window, c, scratch);
      else attend_tiles<false>(n, q, z, position, a.window, c, scratch);
    });
#endif
  for_queries<kPairQueries>(a, c.head_dim, [&](int n, const float* const* q, float* const* z, const int64_t* position) {
    if (n == kPairQueries) return attend_pairs<kPairQueries>(q, z, position, a.window, c, scratch);
    for (int i = 0; i < n; ++i) attend_pairs<1>(q + i, z + i, position + i, a.window, c, scratch);
  });
}

template <KvType K>
inline void attention_of(const Queries& a, const KvView& c, float* scratch) {
  const int total = a.tokens * a.group;
  for (int start = 0; start < total;) {
    const float* q[kQueryTile];
    float* z[kQueryTile];
    int64_t position[kQueryTile];
    const int n = total - start >= 8 ? 8 : total - start >= 4 ? 4 : total - start;
    for (int i = 0; i < n; ++i) {
      const int token = (start + i) / a.group, head = (start + i) % a.group;
      q[i] = a.q + token * a.stride + head * c.head_dim;
      z[i] = a.z + token * a.stride + head * c.head_dim;
      position[i] = a.first + token;
    }
    if (n == 8) attend<K, 8>(q, z, position, a.window, c, scratch);
    else if (n == 4) attend<K, 4>(q, z, position, a.window, c, scratch);
    else if (n == 3) attend<K, 3>(q, z, position, a.window, c, scratch);
    else if (n == 2) attend<K, 2>(q, z, position, a.window, c, scratch);
    else attend<K, 1>(q, z, position, a.window, c, scratch);
    start += n;
  }
}

void attention(const Queries& a, const KvView& c, float* scratch) {
  if (c.type == KvType::f32) attention_of<KvType::f32>(a, c, scratch);
  else if (c.type == KvType::f16) attention_of<KvType::f16>(a, c, scratch);
  else attention_of_pairs(a, c, scratch);
}

// One query's scores over positions [0, position], as a tap sees them.
void scores_of(const float* q, const KvView& c, int64_t position, int64_t window, float* out) {
  const F root = set1(root_of(c.head_dim));
  const int64_t end = position / 16 * 16 + 16;
  float* dots = reinterpret_cast<float*>(kept_tiles.room(end * 4));
  if (in_pairs(c.type)) one_score_of_pairs(q, c, end, dots);
  for (int64_t p = 0; p <= position; p += 16) {
    F s[1][1];
    if (in_pairs(c.type)) {
      s[0][0] = load(dots + p);
    } else {
      const uint8_t* keys = key_block(c, p);
      if (c.type == KvType::f32) score_blocks<KvType::f32, 1, 1>(&q, &keys, c.head_dim, s);
      else score_blocks<KvType::f16, 1, 1>(&q, &keys, c.head_dim, s);
    }
    float x[16];
    store(x, only_seen(mul(s[0][0], root), p, first_seen(position, window), position));
    for (int64_t i = 0; i < 16 && p + i <= position; ++i) out[p + i] = x[i];
  }
}

void mix(const float* pattern, const KvView& c, int64_t first, int64_t last, float* z) {
  if (c.type == KvType::f32) mix_queries<KvType::f32, 1>(&pattern, 0, first, last, c, &z);
  else if (c.type == KvType::f16) mix_queries<KvType::f16, 1>(&pattern, 0, first, last, c, &z);
  else mix_one_of_pairs(pattern, c, first, last, z);
}
