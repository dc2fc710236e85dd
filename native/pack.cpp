// From the bytes of a GGUF row to panels; the reverse of nothing: the file stays as it is.
#include "pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a word of 4 codes has the first in its lowest byte");

namespace vitral {
namespace {

// Four codes are handled at once, as the bytes of a word.
uint32_t word(const uint8_t* p) {
  uint32_t w;
  std::memcpy(&w, p, 4);
  return w;
}
void put(uint8_t* p, uint32_t w) { std::memcpy(p, &w, 4); }
constexpr uint32_t kOnes = 0x01010101, kThrees = 0x03030303, kNibbles = 0x0F0F0F0F;
// Four bits to the lowest bits of four bytes, and back.
uint32_t spread(uint32_t bits) { return (bits & 15) * 0x00204081 & kOnes; }
uint32_t gather(uint32_t bytes) { return (bytes | bytes >> 7 | bytes >> 14 | bytes >> 21) & 15; }

// The 32 unsigned codes of columns [32 * b, 32 * b + 32) of a row, as 8 words.
template <Type T>
void read_codes(const uint8_t* row, int64_t b, uint32_t* out) {
  constexpr Layout l = kLayouts[T];
  const uint8_t* block = row + b * 32 / l.file_block * l.file_bytes;
  const int j = static_cast<int>(b * 32 % l.file_block / 32);  // which 32 of a 256-column block
  if constexpr (T == Q4_0 || T == Q4_1 || T == Q5_0 || T == Q5_1 || T == IQ4_NL || T == IQ4_XS) {
    const uint8_t* q = T == IQ4_XS ? block + 8 + j * 16 : block + l.file_bytes - 16;
    for (int v = 0; v < 4; ++v) {
      const uint32_t w = word(q + v * 4);
      out[v] = w & kNibbles, out[v + 4] = w >> 4 & kNibbles;
    }
    if constexpr (T == Q5_0 || T == Q5_1) {
      const uint32_t fifth = word(q - 4);
      for (int v = 0; v < 8; ++v) out[v] |= spread(fifth >> (v * 4)) << 4;
    }
  } else if constexpr (T == Q8_0) {
    for (int v = 0; v < 8; ++v) out[v] = word(block + 2 + v * 4) ^ 0x80808080;
  } else if constexpr (T == Q2_K || T == Q3_K) {
    const uint8_t* q = block + (T == Q2_K ? 16 : 32) + j / 4 * 32;
    for (int v = 0; v < 8; ++v) out[v] = word(q + v * 4) >> (j % 4 * 2) & kThrees;
    if constexpr (T == Q3_K)
      for (int v = 0; v < 8; ++v) out[v] |= (word(block + v * 4) >> j & kOnes) << 2;
  } else if constexpr (T == Q4_K || T == Q5_K) {
    const uint8_t* q = block + (T == Q4_K ? 16 : 48) + j / 2 * 32;
    for (int v = 0; v < 8; ++v) out[v] = word(q + v * 4) >> (j % 2 * 4) & kNibbles;
    if constexpr (T == Q5_K)
      for (int v = 0; v < 8; ++v) out[v] |= (word(block + 16 + v * 4) >> j & kOnes) << 4;
  } else {
    static_assert(T == Q6_K);
    const int half = j / 4, quarter = j % 4;
    const uint8_t *low = block + half * 64 + quarter % 2 * 32, *high = block + 128 + half * 32;
    for (int v = 0; v < 8; ++v)
      out[v] = (word(low + v * 4) >> (quarter / 2 * 4) & kNibbles) | (word(high + v * 4) >> (quarter * 2) & kThrees) << 4;
  }
}

// Whether a file's 16 bytes of codes, low halves columns 0..15 and high halves 16..31, are a row's words as a panel has them.
constexpr bool as_stored(Type t) { return t == Q4_0 || t == Q4_1 || t == IQ4_NL; }

// Puts the 8 words of a row into their places in a packed block of 16 rows.
template <Codes kind>
void place_codes(const uint32_t* w, int row, uint8_t* block) {
  uint8_t* mine = block + row * 4;
  if constexpr (kind == Codes::bytes) {
    for (int v = 0; v < 8; ++v) put(mine + v * 64, w[v]);
  } else if constexpr (kind == Codes::pairs || kind == Codes::pairs_1) {
    for (int h = 0; h < 2; ++h) {
      const uint32_t* x = w + h * 4;
      put(mine + h * 64, (x[0] & kThrees) | (x[1] & kThrees) << 2 | (x[2] & kThrees) << 4 | (x[3] & kThrees) << 6);
    }
  } else {
    for (int v = 0; v < 4; ++v) put(mine + v * 64, (w[v] & kNibbles) | (w[v + 4] & kNibbles) << 4);
    if constexpr (kind == Codes::nibbles_2)
      for (int h = 0; h < 2; ++h) {
        const uint32_t* x = w + h * 4;
        put(mine + 256 + h * 64, (x[0] >> 4 & kThrees) | (x[1] >> 4 & kThrees) << 2 | (x[2] >> 4 & kThrees) << 4 | (x[3] >> 4 & kThrees) << 6);
      }
  }
  if constexpr (kind == Codes::nibbles_1 || kind == Codes::pairs_1) {  // a mask of 64 bits for each vector
    constexpr int at = kind == Codes::nibbles_1 ? 256 : 128, bit = kind == Codes::nibbles_1 ? 4 : 2;
    for (int v = 0; v < 8; ++v) {
      uint8_t* byte = block + at + v * 8 + row / 2;
      const uint32_t four = gather(w[v] >> bit & kOnes);
      *byte = static_cast<uint8_t>(row % 2 ? *byte | four << 4 : four);
    }
  }
}

void six_bit_pair(const uint8_t* s, int j, uint8_t* scale, uint8_t* minimum) {
  if (j < 4) {
    *scale = s[j] & 63;
    *minimum = s[j + 4] & 63;
  } else {
    *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    *minimum = s[j + 4] >> 4 | (s[j] >> 6) << 4;
  }
}

// The scales of one super-block of one row into their places among those of 16 rows.
void place_scales(Type type, const uint8_t* block, int row, uint8_t* out) {
  auto half = [&](int from, int slot) { std::memcpy(out + slot * 32 + row * 2, block + from, 2); };
  switch (type) {
    case Q4_0: case Q5_0: case Q8_0: case IQ4_NL: half(0, 0); return;
    case Q4_1: case Q5_1: half(0, 0); half(2, 1); return;
    case Q4_K: case Q5_K:
      half(0, 0); half(2, 1);
      for (int j = 0; j < 8; ++j) six_bit_pair(block + 4, j, out + 64 + j * 32 + row, out + 64 + j * 32 + 16 + row);
      return;
    case Q2_K:
      half(80, 0); half(82, 1);
      for (int g = 0; g < 16; ++g) out[64 + g * 16 + row] = block[g];
      return;
    case Q3_K:
      half(108, 0);
      for (int g = 0; g < 16; ++g) {
        const uint8_t* s = block + 96;
        const int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4, high = s[8 + g % 4] >> (g / 4 * 2) & 3;
        out[32 + g * 16 + row] = static_cast<uint8_t>((low | high << 4) - 32);
      }
      return;
    case Q6_K:
      half(208, 0);
      for (int g = 0; g < 16; ++g) out[32 + g * 16 + row] = block[192 + g];
      return;
    case IQ4_XS:
      half(0, 0);
      for (int j = 0; j < 8; ++j) {
        const int low = block[4 + j / 2] >> (j % 2 * 4) & 15, high = (block[2 + j / 4] >> (j % 4 * 2)) & 3;
        out[32 + j * 16 + row] = static_cast<uint8_t>((low | high << 4) - 32);
      }
      return;
    default: return;
  }
}

template <Type T>
void pack_panels(const Matrix& m, const uint8_t* file_rows, int64_t begin, int64_t end, uint8_t* out) {
  constexpr Layout l = kLayouts[T];
  const int64_t row_size = m.row_size();
  for (int64_t p = begin; p < end; ++p) {
    uint8_t* panel = out + p * m.panel_size();
    const int rows = static_cast<int>(m.rows - p * 16 < 16 ? m.rows - p * 16 : 16);
    if (rows < 16) std::memset(panel, 0, m.panel_size());
    const uint8_t* from = file_rows + p * 16 * row_size;
    for (int64_t b = 0; b < m.cols / 32; ++b)
      for (int r = 0; r < rows; ++r) {
        const uint8_t* row = from + r * row_size;
        uint8_t* block = panel + b * l.code_bytes;
        if constexpr (as_stored(T)) {
          const uint8_t* q = row + (b + 1) * l.file_bytes - 16;
          for (int v = 0; v < 4; ++v) put(block + r * 4 + v * 64, word(q + v * 4));
        } else {
          uint32_t codes[8];
          read_codes<T>(row, b, codes);
          place_codes<l.codes>(codes, r, block);
        }
      }
    uint8_t* scales = panel + m.codes_size();
    for (int64_t s = 0; s < m.cols / l.super; ++s)
      for (int r = 0; r < rows; ++r) place_scales(T, from + r * row_size + s * l.file_bytes, r, scales + s * l.scale_bytes);
  }
}

}  // namespace

void pack(Matrix m, const uint8_t* file_rows, int64_t begin, int64_t end, uint8_t* out) {
  switch (m.type) {
    case Q4_0: return pack_panels<Q4_0>(m, file_rows, begin, end, out);
    case Q4_1: return pack_panels<Q4_1>(m, file_rows, begin, end, out);
    case Q5_0: return pack_panels<Q5_0>(m, file_rows, begin, end, out);
    case Q5_1: return pack_panels<Q5_1>(m, file_rows, begin, end, out);
    case Q8_0: return pack_panels<Q8_0>(m, file_rows, begin, end, out);
    case Q2_K: return pack_panels<Q2_K>(m, file_rows, begin, end, out);
    case Q3_K: return pack_panels<Q3_K>(m, file_rows, begin, end, out);
    case Q4_K: return pack_panels<Q4_K>(m, file_rows, begin, end, out);
    case Q5_K: return pack_panels<Q5_K>(m, file_rows, begin, end, out);
    case Q6_K: return pack_panels<Q6_K>(m, file_rows, begin, end, out);
    case IQ4_NL: return pack_panels<IQ4_NL>(m, file_rows, begin, end, out);
    case IQ4_XS: return pack_panels<IQ4_XS>(m, file_rows, begin, end, out);
    default: throw std::invalid_argument(std::string(m.layout().name) + " is not packed");
  }
}

void pack_rows(const std::vector<Packing>& list, ThreadPool& pool) {
  constexpr int64_t kPiece = 256 << 10;  // bytes: far more than it costs to take one
  struct Piece { const Packing* from; int64_t begin, end; };
  std::vector<Piece> pieces;
  for (const Packing& p : list) {
    const bool plain = is_float(p.matrix.type);
    const int64_t units = plain ? p.matrix.rows : p.matrix.panels();
    const int64_t each = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, plain ? p.matrix.row_size() : p.matrix.panel_size()));
    for (int64_t at = 0; at < units; at += each) pieces.push_back({&p, at, std::min(at + each, units)});
  }
  std::atomic<size_t> next{0};
  pool.each([&](int) {
    for (size_t i = next.fetch_add(1); i < pieces.size(); i = next.fetch_add(1)) {
      const auto& [p, begin, end] = pieces[i];
      const int64_t row = p->matrix.row_size();
      if (is_float(p->matrix.type)) std::memcpy(p->out + begin * row, p->file_rows + begin * row, (end - begin) * row);
      else pack(p->matrix, p->file_rows, begin, end, p->out);
    }
  });
}

PackedMatrix::PackedMatrix(Type type, int64_t rows, int64_t cols, const uint8_t* file_rows, ThreadPool& pool)
    : view_{type, rows, cols, file_rows} {
  const Layout& l = kLayouts[type];
  if (rows < 0 || cols <= 0 || cols % l.file_block)
    throw std::invalid_argument(std::string(l.name) + " wants columns in blocks of " + std::to_string(l.file_block) + ", found " + std::to_string(cols));
  if (is_float(type)) return;
  memory_ = Buffer(view_.size());
  view_.data = memory_.data();
  pack_rows({{view_, file_rows, memory_.data()}}, pool);
}

}  // namespace vitral
