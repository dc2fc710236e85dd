// What happens to one row of activations. Included inside an instruction set's namespace.

inline F exp_law(F x) {  // law.py, `exp`
  const F lowest = set1(-87.0f);
  F t = min(max(x, lowest), set1(88.0f));
  F n = rint(mul(t, set1(1.44269504088896341f)));
  F r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), t));
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  F y = mul(add(fma(p, mul(r, r), r), set1(1.0f)), power_of_two(n));
  return where_less(x, lowest, zero(), where_nan(x, x, y));
}

// 16 elements at a time; the last ones with zeros behind them.
template <class Get, class Put>
inline void for_columns(int64_t n, Get get, Put put) {
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) put(k, 16, get(k, 16));
  if (k < n) put(k, static_cast<int>(n - k), get(k, static_cast<int>(n - k)));
}
inline F load_some(const float* p, int n) {
  if (n == 16) return load(p);
  float x[16] = {};
  for (int i = 0; i < n; ++i) x[i] = p[i];
  return load(x);
}
inline void store_some(float* p, int n, F v) {
  if (n == 16) return store(p, v);
  float x[16];
  store(x, v);
  for (int i = 0; i < n; ++i) p[i] = x[i];
}

void quantise(const float* x, int64_t n, int8_t* codes, float* scales, int32_t* sums) {  // law.py, `quantise_rows`
  for (int64_t b = 0; b < n / 32; ++b) {
    F first = load(x + b * 32), second = load(x + b * 32 + 16);
    // What is not finite, less itself, is NaN; it must not hide behind max.
    const bool ok = merge(add(sub(first, first), sub(second, second))) == 0.0f;
    float size = ok ? largest(max(abs(first), abs(second))) : 0.0f;
    float inverse = size > 0.0f ? 127.0f / size : 0.0f;
    if (inverse == __builtin_inff()) inverse = size = 0.0f;
    scales[b] = ok ? size / 127.0f : __builtin_nanf("");
    if (!ok) first = second = zero();
    first = rint(mul(first, set1(inverse)));
    second = rint(mul(second, set1(inverse)));
    store_i8(codes + b * 32, first);
    store_i8(codes + b * 32 + 16, second);
    sums[b * 2] = static_cast<int32_t>(merge(first));  // whole numbers: exact in any order
    sums[b * 2 + 1] = static_cast<int32_t>(merge(second));
  }
}

float rms_scale(const float* x, int64_t n, float eps) {
  F lanes = zero();
  for_columns(n, [&](int64_t k, int m) { return load_some(x + k, m); }, [&](int64_t, int, F v) { lanes = fma(v, v, lanes); });
  return __builtin_sqrtf(merge(lanes) / static_cast<float>(n) + eps);
}

void scale_row(const float* x, float factor, int64_t n, float* out) {
  for_columns(n, [&](int64_t k, int m) { return mul(load_some(x + k, m), set1(factor)); },
              [&](int64_t k, int m, F v) { store_some(out + k, m, v); });
}

void multiply(const float* a, const float* b, int64_t n, float* out) {
  for_columns(n, [&](int64_t k, int m) { return mul(load_some(a + k, m), load_some(b + k, m)); },
              [&](int64_t k, int m, F v) { store_some(out + k, m, v); });
}

void add_rows(const float* a, const float* b, int64_t n, float* out) {
  for_columns(n, [&](int64_t k, int m) { return add(load_some(a + k, m), load_some(b + k, m)); },
              [&](int64_t k, int m, F v) { store_some(out + k, m, v); });
}

void add_scaled(const float* x, float weight, int64_t n, float* acc) {
  for_columns(n, [&](int64_t k, int m) { return fma(set1(weight), load_some(x + k, m), load_some(acc + k, m)); },
              [&](int64_t k, int m, F v) { store_some(acc + k, m, v); });
}

void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  for_columns(n, [&](int64_t k, int m) {
    F g = load_some(gate + k, m);
    return mul(div(g, add(set1(1.0f), exp_law(sub(set1(-0.0f), g)))), load_some(up + k, m));
  }, [&](int64_t k, int m, F v) { store_some(out + k, m, v); });
}

void exp_row(const float* x, int64_t n, float* out) {
  for_columns(n, [&](int64_t k, int m) { return exp_law(load_some(x + k, m)); },
              [&](int64_t k, int m, F v) { store_some(out + k, m, v); });
}

void rotate(float* x, int heads, int head_dim, const float* cos, const float* sin) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; ++h, x += head_dim)
    for (int d = 0; d < half; d += 16) {
      const int m = half - d < 16 ? half - d : 16;
      F a = load_some(x + d, m), b = load_some(x + half + d, m), c = load_some(cos + d, m), s = load_some(sin + d, m);
      store_some(x + d, m, sub(mul(a, c), mul(b, s)));
      store_some(x + half + d, m, add(mul(b, c), mul(a, s)));
    }
}

// x becomes exp(x - largest) over the sum; sums in lanes inside splits of kSplit positions.
void softmax(float* x, int64_t n) {
  float most = x[0];
  for (int64_t i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
  float total = 0.0f;
  for (int64_t start = 0; start < n; start += kSplit) {
    const int64_t end = start + kSplit < n ? start + kSplit : n;
    F lanes = zero();
    for_columns(end - start,
                [&](int64_t k, int m) { return first_lanes(exp_law(sub(load_some(x + start + k, m), set1(most))), m); },
                [&](int64_t k, int m, F v) { store_some(x + start + k, m, v); lanes = add(lanes, v); });
    total = total + merge(lanes);
  }
  scale_row(x, 1.0f / total, n, x);
}
