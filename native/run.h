// What one call of Model::forward works on.
#pragma once
#include "model.h"

namespace vitral {

struct Model::Run {
  Run(Cache& cache_, const Step& step_, const Taps* taps_, const Config& c, bool in_tiles)
      : cache(cache_), step(step_), taps(taps_ && !taps_->names.empty() ? taps_ : nullptr), T(step_.n_tokens) {
    x.resize(T * c.dim);
    out.resize(T * c.dim);
    q.resize(T * c.n_heads * c.head_dim);
    k.resize(T * c.n_kv_heads * c.head_dim);
    v.resize(k.size());
    z.resize(T, c.n_heads * c.head_dim, in_tiles);
    for (int64_t t = 0; t < T;) {  // tokens of a sequence are consecutive
      int64_t n = 1;
      while (t + n < T && step.sequences[t + n] == step.sequences[t]) ++n;
      parts.push_back({t, n, step.sequences[t], step.positions[t]});
      t += n;
    }
  }

  bool tapped() const { return taps != nullptr; }
  bool tapped(const std::string& name) const { return taps && taps->names.count(name); }
  template <class V>
  void tap(const std::string& prefix, const char* name, V* data, const std::vector<int64_t>& shape, bool whole = false, int sequence = -1) {
    if (taps && taps->names.count(prefix + name)) taps->see(prefix + name, data, shape, whole, sequence);
  }

  Cache& cache;
  const Step& step;
  const Taps* taps;
  int64_t T;
  std::vector<RunPart> parts;
  std::vector<float> x, out, q, k, v;    // residual stream; what a part adds to it; heads
  std::vector<float> gate, up;
  Activations h, z, post;                // inputs of products
};

}  // namespace vitral
