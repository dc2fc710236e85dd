// The forward pass over a batch: what src/vitral/model/reference.py says, in kernels.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "activations.h"
#include "adapters.h"
#include "cache.h"
#include "experts.h"
#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace vitral {

struct Config {
  int64_t dim, n_layers, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size, sliding_window;  // window 0: none
  int64_t n_experts, n_experts_per_token;                                                       // 0: dense
  int64_t n_leading_dense;  // so many layers before the first with experts have one network each
  float norm_eps;
  bool tied_embeddings;
};

// Tokens of one step. Token t has an id, a position and a sequence, a row of the page table; tokens
// of a sequence are consecutive, their positions too. `wanted` are the tokens whose logits are asked.
// `adapters` has the number of each token's adapter, -1 for none; null if no token has one.
struct Step {
  int64_t n_tokens, n_wanted, table_width;
  const int32_t *ids, *positions, *sequences, *pages, *wanted, *adapters;
};

// Sees a value by its name and may change it in place. `sequence` is the row of the page table where
// a value belongs to one sequence, else -1. `data` is float32, or int32 for expert indices.
struct Taps {
  std::unordered_set<std::string> names;
  std::unordered_set<int32_t> attention_of;  // sequences whose scores and patterns are seen
  std::function<void(const std::string& name, void* data, const std::vector<int64_t>& shape, bool whole, int sequence)> see;
};

// GGUF rows of a tensor by its canonical name.
struct Weight {
  std::string name;
  Type type;
  const uint8_t* rows;
  int64_t n_rows, cols;
};

class Model {
 public:
  Model(const Config& config, const Kernels& kernels, int n_threads);

  // Packs or copies them, all in one round of the threads.
  void set_weights(const std::vector<Weight>& list);
  // Experts get at most so many bytes of memory; the rows of their matrices, which `leave_weight` takes,
  // stay where they are for as long as the model lives, and are packed when a router chooses them.
  void limit_experts(int64_t budget);
  void leave_weight(const Weight& w);
  void finish();
  // Tables of n_positions x head_dim / 2.
  void set_rope(const float* cos, const float* sin, int64_t n_positions);
  void set_adapter(int32_t id, const std::vector<AdapterPart>& parts);
  void remove_adapter(int32_t id);
  void forward(Cache& cache, const Step& step, const Taps* taps, float* logits);
  // A matrix read backwards: x (n, rows) times W (rows, cols) into out (n, cols), by dequantised rows.
  void project_back(const std::string& name, const float* x, int64_t n, float* out);
  std::pair<int64_t, int64_t> shape_of(const std::string& name) const;

  const Config& config() const { return config_; }
  const Kernels& kernels() const { return kernels_; }
  int n_threads() const { return pool_.size(); }
  int64_t weight_bytes() const;  // in memory
  ExpertCounts expert_counts() const { return store_ ? store_->counts() : ExpertCounts{}; }

 private:
  struct Expert { Matrix gate, up, down; };
  struct Layer {
    const float *ln1, *ln2;
    Matrix q, k, v, o, router;
    std::vector<Expert> experts;  // one where the layer is dense
    bool is_mixture() const { return router.data != nullptr; }
  };
  struct Product { const Matrix* matrix; Rows in; float* out; };
  struct Share { const Expert* expert; int64_t first, rows; };  // rows of an input that one expert takes
  struct Run;  // what one call of forward works on
  struct RunPart { int64_t first, n; int32_t sequence; int64_t position; };  // consecutive tokens of one sequence

  struct Left { const uint8_t* rows; int64_t layer, expert; Matrix* matrix; };  // in its file

  Matrix new_matrix(const Weight& w) const;
  void leave_experts();
  const Matrix& fetched(const std::string& name);
  const Matrix& matrix(const std::string& name, int64_t rows, int64_t cols) const;
  const float* vector(const std::string& name, int64_t n) const;
  void check(const Cache& cache, const Step& step) const;
  void embed(Run& run);
  void norm(Run& run, const float* gain, const std::string& prefix, const std::string& out, const float* x, bool quantised);
  bool in_tiles(int64_t rows) const { return kernels_.tiles_from && rows >= kernels_.tiles_from; }
  // `adapters` are those of the rows, or null; with them all products have the same input.
  void products(const std::vector<Product>& list, const int32_t* adapters = nullptr);
  const Matrix* adaptable(const std::string& name) const;
  void add_low_rank(const std::vector<Product>& list, const int32_t* adapters);
  void attention(Run& run, int64_t layer);
  void attend(Run& run, const std::vector<RunPart>& parts, int64_t layer);
  void attend_seen(Run& run, const std::vector<RunPart>& parts, int64_t layer);
  void swiglu(Run& run, const std::vector<Share>& shares, const Activations& in, const std::string& prefix, float* out,
              const int32_t* adapters);
  void mixture(Run& run, int64_t layer);

  Config config_;
  const Kernels& kernels_;
  ThreadPool pool_;
  std::unordered_map<std::string, Matrix> matrices_;
  Arena memory_;
  std::vector<Layer> layers_;
  std::unordered_map<std::string, Left> left_;
  std::unique_ptr<ExpertStore> store_;  // null where all experts are in memory
  std::unordered_map<int32_t, Adapter> adapters_;
  const float* ln_final_ = nullptr;
  Matrix embed_, unembed_;
  std::vector<float> cos_, sin_;
  int64_t n_positions_ = 0;
  std::vector<std::vector<float>> scratch_;  // one for each worker
};

}  // namespace vitral
