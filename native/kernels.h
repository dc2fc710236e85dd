// The table of kernels of one instruction set. Every row gives the bits of src/vitral/model/law.py.
#pragma once
#include <cstdint>

#include "packed.h"

namespace vitral {

constexpr int kSplit = 256;    // keys that attention sums before merging
constexpr int kKeyBlock = 16;  // keys that lie side by side in the cache
constexpr int kPairs = 32;     // bfloat16 elements whose products are summed before they join the rest

enum class KvType : uint8_t { f32, f16, bf16, q8_0 };

// Whether keys and values are multiplied as bfloat16, two by two.
[[gnu::always_inline]] constexpr bool in_pairs(KvType t) { return t == KvType::bf16 || t == KvType::q8_0; }

// Keys and values of one layer and one key/value head, in pages of `page_size` positions, in blocks of 16:
// keys [D][16], values [16][D]; as bf16, the operand order of tiles, keys [D / 2][16][2], values [8][D][2];
// as q8_0 codes, keys [D][16], values [16][D in whole 16], and behind them f16 scales [D / 32][16].
// Bytes of the keys or values of such a block.
[[gnu::always_inline]] constexpr int64_t kv_block_bytes(KvType t, int64_t head_dim) {
  if (t == KvType::q8_0) return ((head_dim + 15) / 16 * 16 + (head_dim + 31) / 32 * 2) * kKeyBlock;
  return head_dim * kKeyBlock * (t == KvType::f32 ? 4 : 2);
}

struct KvView {
  KvType type;
  int head_dim, page_size;
  const uint8_t* keys;       // of page 0
  const uint8_t* values;
  int64_t key_stride, value_stride;  // bytes from a page to the next
  const int32_t* pages;      // page of each page_size positions
};

// Queries of consecutive tokens of one sequence that read the same key/value head.
struct Queries {
  const float* q;      // query (t, g) at q + t * stride + g * D
  float* z;            // the same places
  int64_t stride;
  int tokens, group;   // query heads that share the key/value head
  int64_t first;       // position of the first token
  int64_t window;      // positions that a token sees, itself included; 0 for all
};

struct Kernels {
  const char* isa;
  int64_t tiles_from;  // from so many rows on, products read activations in tiles; 0: never
  void (*quantise)(const float* x, int64_t n, int8_t* codes, float* scales, int32_t* sums);
  // Panels (float types: rows) [begin, end) of matrix x rows into out (rows, stride).
  void (*matmul[N_TYPES])(const Matrix&, const Rows&, int64_t begin, int64_t end, float* out, int64_t stride);
  void (*row[N_TYPES])(const Matrix&, int64_t row, float* out);
  // Codes less zero, scales and minima of a packed row, for tests.
  void (*unpack[N_TYPES])(const Matrix&, int64_t row, int8_t* codes, float* scales, float* minima);
  float (*rms_scale)(const float* x, int64_t n, float eps);
  void (*scale_row)(const float* x, float factor, int64_t n, float* out);
  void (*mul)(const float* a, const float* b, int64_t n, float* out);
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*add_scaled)(const float* x, float weight, int64_t n, float* acc);  // acc = fma(weight, x, acc)
  void (*rotate)(float* x, int heads, int head_dim, const float* cos, const float* sin);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*exp)(const float* x, int64_t n, float* out);
  void (*softmax)(float* x, int64_t n);  // over positions 0..n-1
  void (*store_kv)(const float* k, const float* v, KvType, int head_dim, int slot, uint8_t* keys, uint8_t* values);
  // Scores of one query over positions [0, n), minus infinity where the window hides them.
  void (*scores)(const float* q, const KvView&, int64_t position, int64_t window, float* out);
  void (*mix)(const float* pattern, const KvView&, int64_t first, int64_t last, float* z);
  void (*attention)(const Queries&, const KvView&, float* scratch);
};

// Floats of scratch that `attention` wants for sequences of `positions`.
constexpr int kQueryTile = 8;    // queries that are handled together
constexpr int kQueryTiles = 32;  // the same where there are tiles
constexpr int64_t attention_scratch(int64_t positions) { return kQueryTiles * ((positions + 31) / 32 * 32 + 48); }

}  // namespace vitral
