// A weight matrix as kernels read it: panels of 16 rows.
//
// A panel holds the codes of 16 rows, 32-column block after block, then their scales. In a block,
// vector v (64 bytes) has the codes of columns 4v..4v+3, four bytes for each row: the operand order
// of VNNI dots and of AMX tiles. Codes are unsigned; subtracting `zero` gives the law's code.
// How a block stores its 8 vectors depends on the bits of a code:
//   4 bits  4 vectors of nibbles: low halves are vectors 0..3, high halves 4..7
//   2 bits  2 vectors of pairs: vector h has vectors 4h..4h+3 at shifts 0, 2, 4, 6
//   +1 bit  8 masks of 64 bits, one for each vector; +2 bits: 2 vectors of pairs, as above
//   8 bits  8 vectors
#pragma once
#include <cstdint>

namespace vitral {

enum Type : uint8_t { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, N_TYPES };

enum class Codes : uint8_t { nibbles, nibbles_1, nibbles_2, pairs, pairs_1, bytes, table };
enum class Scales : uint8_t { half, half_min, k_6bit, k_4bit, k_int8 };

// What the packed form of a type looks like. `file_block` and `file_bytes` are GGUF's.
struct Layout {
  const char* name;
  int file_block, file_bytes;
  Codes codes;
  Scales scales;
  int group;         // columns that share a scale: 16 or 32
  int zero;          // stored code - zero = the law's code
  int code_bytes;    // of a 32-column block of 16 rows
  int super;         // columns that share a header of scales: 32 or 256
  int scale_bytes;   // of such a super-block of 16 rows
};

constexpr Layout kLayouts[N_TYPES] = {
    {"F32", 1, 4, Codes::bytes, Scales::half, 0, 0, 0, 0, 0},
    {"F16", 1, 2, Codes::bytes, Scales::half, 0, 0, 0, 0, 0},
    {"BF16", 1, 2, Codes::bytes, Scales::half, 0, 0, 0, 0, 0},
    {"Q4_0", 32, 18, Codes::nibbles, Scales::half, 32, 8, 256, 32, 32},
    {"Q4_1", 32, 20, Codes::nibbles, Scales::half_min, 32, 0, 256, 32, 64},
    {"Q5_0", 32, 22, Codes::nibbles_1, Scales::half, 32, 16, 320, 32, 32},
    {"Q5_1", 32, 24, Codes::nibbles_1, Scales::half_min, 32, 0, 320, 32, 64},
    {"Q8_0", 32, 34, Codes::bytes, Scales::half, 32, 128, 512, 32, 32},
    {"Q2_K", 256, 84, Codes::pairs, Scales::k_4bit, 16, 0, 128, 256, 64 + 16 * 16},
    {"Q3_K", 256, 110, Codes::pairs_1, Scales::k_int8, 16, 4, 192, 256, 32 + 16 * 16},
    {"Q4_K", 256, 144, Codes::nibbles, Scales::k_6bit, 32, 0, 256, 256, 64 + 8 * 32},
    {"Q5_K", 256, 176, Codes::nibbles_1, Scales::k_6bit, 32, 0, 320, 256, 64 + 8 * 32},
    {"Q6_K", 256, 210, Codes::nibbles_2, Scales::k_int8, 16, 32, 384, 256, 32 + 16 * 16},
    {"IQ4_NL", 32, 18, Codes::table, Scales::half, 32, 128, 256, 32, 32},
    {"IQ4_XS", 256, 136, Codes::table, Scales::k_int8, 32, 128, 256, 256, 32 + 8 * 16},
};

[[gnu::always_inline]] constexpr bool has_minima(Scales s) { return s == Scales::half_min || s == Scales::k_6bit || s == Scales::k_4bit; }
[[gnu::always_inline]] constexpr bool is_float(Type t) { return t <= BF16; }

// The levels of IQ4_NL and IQ4_XS, plus 128.
alignas(64) constexpr uint8_t kTable[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

[[gnu::always_inline]] constexpr int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }

// A matrix of `rows` x `cols`: packed panels, or the file's rows where the type is a float.
// Inlined everywhere: a copy compiled for one instruction set must not serve another.
struct Matrix {
  Type type = F32;
  int64_t rows = 0, cols = 0;
  const uint8_t* data = nullptr;

  [[gnu::always_inline]] const Layout& layout() const { return kLayouts[type]; }
  [[gnu::always_inline]] int64_t panels() const { return (rows + 15) / 16; }
  [[gnu::always_inline]] int64_t codes_size() const { return cols / 32 * layout().code_bytes; }
  [[gnu::always_inline]] int64_t panel_size() const { return align64(codes_size() + cols / layout().super * layout().scale_bytes); }
  [[gnu::always_inline]] int64_t row_size() const { return cols / layout().file_block * layout().file_bytes; }
  [[gnu::always_inline]] int64_t size() const { return is_float(type) ? rows * row_size() : panels() * panel_size(); }
  [[gnu::always_inline]] const uint8_t* panel(int64_t p) const { return data + p * panel_size(); }
  [[gnu::always_inline]] const uint8_t* scales(int64_t p) const { return panel(p) + codes_size(); }
};

// Rows of activations: floats, and the same as 8-bit codes with a scale for each 32 columns and
// the sum of the codes of each 16 (null where no quantised weight reads them).
struct Rows {
  int64_t rows = 0, cols = 0;
  const float* x = nullptr;
  const int8_t* codes = nullptr;   // (rows, cols)
  const float* scales = nullptr;   // (rows, cols / 32)
  const int32_t* sums = nullptr;   // (rows, cols / 16)
  // In tiles of 16 rows, those behind the last undefined, where this is not null: codes (tile, cols / 32, 16, 32),
  // scales (tile, cols / 32, 16), and of the block and its halves, in place of sums, those times the scale: (tile, cols / 32, 3, 16).
  const float* lows = nullptr;
};

// Packs panels [begin, end) of a matrix from GGUF rows into `out`, which has size() bytes.
void pack(Matrix shape, const uint8_t* file_rows, int64_t begin, int64_t end, uint8_t* out);

}  // namespace vitral
