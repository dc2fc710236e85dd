#include "model.h"

#include <algorithm>
#include <stdexcept>

#include "back.h"
#include "pack.h"
#include "run.h"

namespace vitral {
namespace {

[[noreturn]] void refuse(const std::string& text) { throw std::invalid_argument(text); }

std::string shape_text(int64_t rows, int64_t cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

constexpr int64_t kRowsTogether = 16;  // of several experts

bool any_packed(std::initializer_list<const Matrix*> list) {
  return std::any_of(list.begin(), list.end(), [](const Matrix* m) { return !is_float(m->type); });
}

}  // namespace

Model::Model(const Config& config, const Kernels& kernels, int n_threads)
    : config_(config), kernels_(kernels), pool_(n_threads), scratch_(n_threads < 1 ? 1 : n_threads) {}

Matrix Model::new_matrix(const Weight& w) const {
  if (matrices_.count(w.name)) refuse("weight " + w.name + " is set twice");
  Matrix m{w.type, w.n_rows, w.cols, nullptr};
  if (!is_float(w.type) && w.cols % m.layout().file_block)
    refuse("weight " + w.name + " has rows of " + std::to_string(w.cols) + "; " + m.layout().name + " wants multiples of " +
           std::to_string(m.layout().file_block));
  return m;
}

void Model::set_weights(const std::vector<Weight>& list) {
  std::vector<Packing> packings;
  for (const Weight& w : list) {
    Matrix m = new_matrix(w);
    uint8_t* place = memory_.room(m.size());
    m.data = place;
    matrices_[w.name] = m;
    packings.push_back({m, w.rows, place});
  }
  pack_rows(packings, pool_);
}

void Model::limit_experts(int64_t budget) { store_ = std::make_unique<ExpertStore>(budget, pool_); }

void Model::leave_weight(const Weight& w) {
  if (!store_) refuse("weight " + w.name + " cannot stay in its file: experts have no limit");
  matrices_[w.name] = new_matrix(w);
  left_[w.name] = {w.rows, 0, 0, nullptr};
}

// Experts whose matrices stay in the file become known to the store.
void Model::leave_experts() {
  size_t known = 0;
  for (size_t i = 0; i < layers_.size(); ++i)
    for (size_t e = 0; layers_[i].is_mixture() && e < layers_[i].experts.size(); ++e) {
      const std::string expert = "blocks." + std::to_string(i) + ".mlp.experts." + std::to_string(e) + ".";
      Expert& matrices = layers_[i].experts[e];
      std::array<const uint8_t*, 3> rows{};
      std::array<Matrix*, 3> parts{&matrices.gate, &matrices.up, &matrices.down};
      const char* names[] = {"gate.weight", "up.weight", "down.weight"};
      for (int part = 0; part < 3; ++part) {
        auto found = left_.find(expert + names[part]);
        if (found == left_.end()) refuse("weight " + expert + names[part] + " must stay in its file, as all experts do");
        found->second = {found->second.rows, static_cast<int64_t>(i), static_cast<int64_t>(e), parts[part]};
        rows[part] = found->second.rows;
        ++known;
      }
      store_->add(static_cast<int64_t>(i), parts, rows);
    }
  if (known != left_.size()) refuse("only the matrices of experts can stay in their file");
}

// A matrix with its data, until the next call.
const Matrix& Model::fetched(const std::string& name) {
  auto left = left_.find(name);
  if (left == left_.end()) return matrices_.at(name);
  store_->fetch(left->second.layer, left->second.expert);
  return *left->second.matrix;
}

const Matrix& Model::matrix(const std::string& name, int64_t rows, int64_t cols) const {
  auto found = matrices_.find(name);
  if (found == matrices_.end()) refuse("weight " + name + " is missing");
  const Matrix& m = found->second;
  if (m.rows != rows || m.cols != cols)
    refuse("weight " + name + " is " + shape_text(m.rows, m.cols) + "; the model wants " + shape_text(rows, cols));
  return m;
}

const float* Model::vector(const std::string& name, int64_t n) const {
  const Matrix& m = matrix(name, 1, n);
  if (m.type != F32) refuse("weight " + name + " is " + m.layout().name + "; it must be F32");
  return reinterpret_cast<const float*>(m.data);
}

void Model::finish() {
  const Config& c = config_;
  const int64_t queries = c.n_heads * c.head_dim, keys = c.n_kv_heads * c.head_dim;
  embed_ = matrix("embed.weight", c.vocab_size, c.dim);
  unembed_ = c.tied_embeddings ? embed_ : matrix("unembed.weight", c.vocab_size, c.dim);
  ln_final_ = vector("ln_final.weight", c.dim);
  size_t used = c.tied_embeddings ? 2 : 3;
  for (int64_t i = 0; i < c.n_layers; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    Layer layer{vector(block + "ln1.weight", c.dim),
                vector(block + "ln2.weight", c.dim),
                matrix(block + "attn.q.weight", queries, c.dim),
                matrix(block + "attn.k.weight", keys, c.dim),
                matrix(block + "attn.v.weight", keys, c.dim),
                matrix(block + "attn.o.weight", c.dim, queries),
                {},
                {}};
    used += 6;
    const int64_t n_experts = i < c.n_leading_dense ? 0 : c.n_experts;
    if (n_experts) {
      layer.router = matrix(block + "mlp.router.weight", n_experts, c.dim);
      if (layer.router.type != F32) refuse("weight " + block + "mlp.router.weight must be F32");
      ++used;
    }
    for (int64_t e = 0; e < std::max<int64_t>(n_experts, 1); ++e) {
      const std::string mlp = block + (n_experts ? "mlp.experts." + std::to_string(e) + "." : "mlp.");
      layer.experts.push_back({matrix(mlp + "gate.weight", c.hidden_dim, c.dim), matrix(mlp + "up.weight", c.hidden_dim, c.dim),
                               matrix(mlp + "down.weight", c.dim, c.hidden_dim)});
      used += 3;
    }
    layers_.push_back(std::move(layer));
  }
  if (used != matrices_.size()) refuse(std::to_string(matrices_.size() - used) + " weights are left over");
  if (store_) leave_experts();
}

int64_t Model::weight_bytes() const { return memory_.used() + (store_ ? store_->counts().held : 0); }

void Model::set_rope(const float* cos, const float* sin, int64_t n_positions) {
  const int64_t n = n_positions * config_.head_dim / 2;
  cos_.assign(cos, cos + n);
  sin_.assign(sin, sin + n);
  n_positions_ = n_positions;
}

void Model::check(const Cache& cache, const Step& s) const {
  const Config& c = config_;
  if (static_cast<int64_t>(layers_.size()) != c.n_layers) refuse("finish() was not called: the model has no layers yet");
  if (cache.n_layers() != c.n_layers || cache.n_kv_heads() != c.n_kv_heads || cache.head_dim() != c.head_dim)
    refuse("the cache was made for another model");
  for (int64_t t = 0; t < s.n_tokens; ++t) {
    const std::string token = "token " + std::to_string(t);
    if (s.ids[t] < 0 || s.ids[t] >= c.vocab_size)
      refuse(token + " has id " + std::to_string(s.ids[t]) + "; allowed: 0 to " + std::to_string(c.vocab_size - 1));
    if (s.positions[t] < 0 || s.positions[t] >= n_positions_)
      refuse(token + " is at position " + std::to_string(s.positions[t]) + "; the rope table has " + std::to_string(n_positions_));
    if (s.sequences[t] < 0) refuse(token + " has sequence " + std::to_string(s.sequences[t]));
    if (s.positions[t] / cache.page_size() >= s.table_width) refuse(token + " lies outside the page table");
    if (t && s.sequences[t] == s.sequences[t - 1] && s.positions[t] != s.positions[t - 1] + 1)
      refuse(token + " does not follow the one before it in its sequence");
    if (s.adapters && s.adapters[t] >= 0 && !adapters_.count(s.adapters[t]))
      refuse(token + " wants adapter " + std::to_string(s.adapters[t]) + ", which is not loaded");
    for (int64_t p = 0; p <= s.positions[t] / cache.page_size(); ++p) {
      const int32_t page = s.pages[s.sequences[t] * s.table_width + p];
      if (page < 0 || page >= cache.n_pages())
        refuse(token + " needs page " + std::to_string(page) + "; the cache has " + std::to_string(cache.n_pages()));
    }
  }
  for (int64_t r = 0; r < s.n_wanted; ++r)
    if (s.wanted[r] < 0 || s.wanted[r] >= s.n_tokens)
      refuse("logits are wanted of token " + std::to_string(s.wanted[r]) + " of " + std::to_string(s.n_tokens));
}

void Model::forward(Cache& cache, const Step& step, const Taps* taps, float* logits) {
  check(cache, step);
  const Config& c = config_;
  Run run(cache, step, taps, c, in_tiles(step.n_tokens));
  embed(run);
  for (int64_t i = 0; i < c.n_layers; ++i) {
    const Layer& layer = layers_[i];
    const std::string block = run.tapped() ? "blocks." + std::to_string(i) + "." : "";
    run.tap(block, "hook_resid_pre", run.x.data(), {run.T, c.dim});
    run.h.resize(run.T, c.dim, in_tiles(run.T));
    norm(run, layer.ln1, block + "ln1", block + "attn.hook_in", run.x.data(), any_packed({&layer.q, &layer.k, &layer.v}));
    attention(run, i);
    run.tap(block, "hook_attn_out", run.out.data(), {run.T, c.dim});
    kernels_.add(run.x.data(), run.out.data(), run.T * c.dim, run.x.data());
    run.tap(block, "hook_resid_mid", run.x.data(), {run.T, c.dim});
    const Expert& first = layer.experts[0];
    if (layer.is_mixture()) run.h.resize(run.T, c.dim, false);  // its rows are dealt out among the experts
    norm(run, layer.ln2, block + "ln2", block + "mlp.hook_in", run.x.data(), layer.is_mixture() || any_packed({&first.gate, &first.up}));
    if (layer.is_mixture()) mixture(run, i);
    else swiglu(run, {{&first, 0, run.T}}, run.h, block + "mlp.", run.out.data(), step.adapters);
    run.tap(block, "hook_mlp_out", run.out.data(), {run.T, c.dim});
    kernels_.add(run.x.data(), run.out.data(), run.T * c.dim, run.x.data());
    run.tap(block, "hook_resid_post", run.x.data(), {run.T, c.dim});
  }
  if (!step.n_wanted) return;
  std::vector<float> last(step.n_wanted * c.dim);
  for (int64_t r = 0; r < step.n_wanted; ++r)
    std::copy_n(run.x.data() + step.wanted[r] * c.dim, c.dim, last.data() + r * c.dim);
  run.h.resize(step.n_wanted, c.dim, in_tiles(step.n_wanted));
  norm(run, ln_final_, "ln_final", "unembed.hook_in", last.data(), any_packed({&unembed_}));
  products({{&unembed_, run.h.view(), logits}});
  run.tap("", "unembed.hook_out", logits, {step.n_wanted, c.vocab_size});
}

std::pair<int64_t, int64_t> Model::shape_of(const std::string& name) const {
  auto found = matrices_.find(name);
  if (found == matrices_.end()) refuse("no weight is called " + name);
  return {found->second.rows, found->second.cols};
}

// Rows in blocks of 256, ascending in each; then the blocks in order: the same sums with any number of threads.
void Model::project_back(const std::string& name, const float* x, int64_t n, float* out) {
  const Matrix& m = fetched(name);
  const BackBlock block = back_block_for(kernels_.isa, m.type);
  const int64_t lanes = (n + 15) / 16 * 16, across = (m.cols + 31) / 32;
  std::vector<float> tokens(m.rows * lanes, 0.0f);  // x with the tokens side by side
  for (int64_t t = 0; t < n; ++t)
    for (int64_t r = 0; r < m.rows; ++r) tokens[r * lanes + t] = x[t * m.rows + r];
  pool_.split(across, [&](int64_t begin, int64_t end, int) {
    std::vector<float> sums(32 * lanes), part(32 * lanes);
    for (int64_t b = begin; b < end; ++b) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t first = 0; first < m.rows; first += kBackRows) {
        block(m, first, std::min(kBackRows, m.rows - first), b, tokens.data() + first * lanes, lanes, part.data());
        kernels_.add(sums.data(), part.data(), 32 * lanes, sums.data());
      }
      for (int64_t c = b * 32; c < std::min(b * 32 + 32, m.cols); ++c)
        for (int64_t t = 0; t < n; ++t) out[t * m.cols + c] = sums[(c - b * 32) * lanes + t];
    }
  });
}

void Model::embed(Run& run) {
  const int64_t dim = config_.dim;
  pool_.split(run.T, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) kernels_.row[embed_.type](embed_, run.step.ids[t], run.x.data() + t * dim);
  });
  run.tap("", "hook_embed", run.x.data(), {run.T, dim});
}

// Rows of run.h from x: over the root of the mean square, times the gain, and in 8 bits.
void Model::norm(Run& run, const float* gain, const std::string& prefix, const std::string& out, const float* x, bool quantised) {
  Activations& h = run.h;
  const int64_t n = h.cols;
  auto scale_of = [&](int64_t t) { return kernels_.rms_scale(x + t * n, n, config_.norm_eps); };
  auto normalise = [&](int64_t t, float scale) { kernels_.scale_row(x + t * n, 1.0f / scale, n, h.x.data() + t * n); };
  auto gained = [&](int64_t t) { kernels_.mul(h.x.data() + t * n, gain, n, h.x.data() + t * n); };
  if (!run.tapped()) {
    pool_.split(h.rows, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) normalise(t, scale_of(t)), gained(t);
      if (quantised) h.quantise(kernels_, begin * n, end * n);
    });
    return;
  }
  std::vector<float> scales(h.rows);
  for (int64_t t = 0; t < h.rows; ++t) scales[t] = scale_of(t);
  run.tap(prefix, ".hook_scale", scales.data(), {h.rows, 1});
  for (int64_t t = 0; t < h.rows; ++t) normalise(t, scales[t]);
  run.tap(prefix, ".hook_normalized", h.x.data(), {h.rows, n});
  for (int64_t t = 0; t < h.rows; ++t) gained(t);
  run.tap(out, "", h.x.data(), {h.rows, n});
  if (quantised) h.quantise(kernels_, 0, h.rows * n);
}

// All products at once: the rows of all matrices, shared out among the threads.
void Model::products(const std::vector<Product>& list, const int32_t* adapters) {
  auto units = [](const Matrix& m) { return is_float(m.type) ? (m.rows + 3) / 4 : m.panels(); };
  int64_t total = 0;
  for (const Product& p : list) total += units(*p.matrix);
  pool_.share(total, [&](int64_t begin, int64_t end, int) {
    int64_t offset = 0;
    for (const Product& p : list) {
      const Matrix& m = *p.matrix;
      const int64_t n = units(m), from = std::max<int64_t>(begin - offset, 0), to = std::min(end - offset, n);
      offset += n;
      if (from >= to) continue;
      const bool plain = is_float(m.type);
      kernels_.matmul[m.type](m, p.in, plain ? from * 4 : from, plain ? std::min(to * 4, m.rows) : to, p.out, m.rows);
    }
  });
  if (adapters) add_low_rank(list, adapters);
}

void Model::swiglu(Run& run, const std::vector<Share>& shares, const Activations& in, const std::string& prefix, float* out,
                   const int32_t* adapters) {
  const int64_t n = in.rows, F = config_.hidden_dim, C = config_.dim;
  run.gate.resize(n * F);
  run.up.resize(n * F);
  run.post.resize(n, F, in.tiled);
  std::vector<Product> list;
  for (const Share& s : shares) {
    list.push_back({&s.expert->gate, in.view(s.first, s.rows), run.gate.data() + s.first * F});
    list.push_back({&s.expert->up, in.view(s.first, s.rows), run.up.data() + s.first * F});
  }
  products(list, adapters);
  run.tap(prefix, "hook_pre", run.gate.data(), {n, F});
  run.tap(prefix, "hook_pre_linear", run.up.data(), {n, F});
  const bool packed = std::any_of(shares.begin(), shares.end(), [](const Share& s) { return !is_float(s.expert->down.type); });
  const bool tapped = run.tapped();
  const int64_t width = F % 32 || in.tiled ? F : 32;  // parts that are rounded each for itself: also one row is shared among threads
  pool_.split(n * F / width, [&](int64_t begin, int64_t end, int) {
    const int64_t from = begin * width, to = end * width;
    kernels_.silu_mul(run.gate.data() + from, run.up.data() + from, to - from, run.post.x.data() + from);
    if (packed && !tapped) run.post.quantise(kernels_, from, to);
  });
  run.tap(prefix, "hook_post", run.post.x.data(), {n, F});
  if (packed && tapped) run.post.quantise(kernels_, 0, n * F);
  list.clear();
  for (const Share& s : shares) list.push_back({&s.expert->down, run.post.view(s.first, s.rows), out + s.first * C});
  products(list, adapters);
}

void Model::mixture(Run& run, int64_t i) {
  const int64_t T = run.T, E = config_.n_experts, k = config_.n_experts_per_token, C = config_.dim;
  const Layer& layer = layers_[i];
  const std::string mlp = run.tapped() ? "blocks." + std::to_string(i) + ".mlp." : "";
  std::vector<float> probs(T * E), share(T * k);
  std::vector<int32_t> chosen(T * k);
  products({{&layer.router, run.h.view(), probs.data()}});
  run.tap(mlp, "hook_router_logits", probs.data(), {T, E});
  for (int64_t t = 0; t < T; ++t) kernels_.softmax(probs.data() + t * E, E);
  run.tap(mlp, "hook_router_probs", probs.data(), {T, E});
  std::vector<int32_t> order(E);
  for (int64_t t = 0; t < T; ++t) {
    const float* p = probs.data() + t * E;
    for (int64_t e = 0; e < E; ++e) order[e] = static_cast<int32_t>(e);
    std::stable_sort(order.begin(), order.end(), [p](int32_t a, int32_t b) { return p[a] > p[b]; });
    std::copy_n(order.begin(), k, chosen.begin() + t * k);
  }
  run.tap(mlp, "hook_expert_indices", chosen.data(), {T, k}, true);
  for (int64_t t = 0; t < T; ++t) {
    float total = 0.0f;
    for (int64_t r = 0; r < k; ++r) {
      const int32_t e = chosen[t * k + r];
      if (e < 0 || e >= E) refuse(mlp + "hook_expert_indices: expert " + std::to_string(e) + " does not exist");
      total += share[t * k + r] = probs[t * E + e];
    }
    for (int64_t r = 0; r < k; ++r) share[t * k + r] /= total;
  }
  run.tap(mlp, "hook_expert_weights_topk", share.data(), {T, k});

  std::vector<int64_t> wanted;
  for (int64_t e = 0; e < E; ++e)
    if (std::find(chosen.begin(), chosen.end(), e) != chosen.end()) wanted.push_back(e);
  if (store_) store_->choose(i, wanted);
  if (run.tapped()) std::sort(wanted.begin(), wanted.end());  // who watches sees the experts in order
  // Experts with few rows each are multiplied together, so that threads wait for each other less often. One by one
  // where somebody watches, where a row has an adapter, and where the next may take the place of the one before.
  const int64_t most = run.tapped() || run.step.adapters || store_ ? 0 : kRowsTogether;
  std::vector<float> outputs(T * k * C), some;
  std::vector<int64_t> places;
  std::vector<int32_t> adapters;  // of the rows in `in`
  std::vector<Share> shares;
  Activations in;
  for (size_t next = 0; next < wanted.size();) {
    places.clear(), shares.clear(), adapters.clear();
    const int64_t e = wanted[next];
    if (store_) store_->fetch(i, e);
    for (; next < wanted.size(); ++next) {
      const int64_t first = static_cast<int64_t>(places.size());
      for (int64_t p = 0; p < T * k; ++p)
        if (chosen[p] == wanted[next]) places.push_back(p);
      const int64_t rows = static_cast<int64_t>(places.size()) - first;
      if (first && first + rows > most) {
        places.resize(first);
        break;
      }
      shares.push_back({&layer.experts[wanted[next]], first, rows});
    }
    const int64_t n = static_cast<int64_t>(places.size());
    in.resize(n, C, shares.size() == 1 && in_tiles(n));
    if (run.step.adapters)
      for (int64_t p : places) adapters.push_back(run.step.adapters[p / k]);
    for (int64_t r = 0; r < n; ++r) in.take(run.h, places[r] / k, r);
    some.resize(n * C);
    const std::string expert = run.tapped() ? mlp + "experts." + std::to_string(e) + "." : "";
    swiglu(run, shares, in, expert, some.data(), run.step.adapters ? adapters.data() : nullptr);
    run.tap(expert, "hook_out", some.data(), {n, C});
    for (int64_t r = 0; r < n; ++r) std::copy_n(some.data() + r * C, C, outputs.data() + places[r] * C);
  }
  std::fill(run.out.begin(), run.out.end(), 0.0f);
  pool_.split(T, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t r = 0; r < k; ++r) kernels_.add_scaled(outputs.data() + (t * k + r) * C, share[t * k + r], C, run.out.data() + t * C);
  });
}

}  // namespace vitral
