// From the bytes of a GGUF row to panels; the reverse of nothing: the file stays as it is.
#include "pack.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace vitral {
namespace {

// The 32 unsigned codes of columns [32 * b, 32 * b + 32) of a row.
void read_codes(Type type, const uint8_t* row, int64_t b, uint8_t* out) {
  const Layout& l = kLayouts[type];
  const uint8_t* block = row + b * 32 / l.file_block * l.file_bytes;
  const int j = static_cast<int>(b * 32 % l.file_block / 32);  // which 32 of a 256-column block
  const uint8_t* q = block;
  switch (type) {
    case Q4_0: case IQ4_NL: q += 2; break;
    case Q4_1: q += 4; break;
    case Q5_0: q += 6; break;
    case Q5_1: q += 8; break;
    case Q4_K: q += 16 + j / 2 * 32; break;
    case Q5_K: q += 48 + j / 2 * 32; break;
    case IQ4_XS: q += 8 + j * 16; break;
    default: break;
  }
  for (int i = 0; i < 32; ++i) {
    switch (type) {
      case Q4_0: case Q4_1: case IQ4_NL: case IQ4_XS: case Q5_0: case Q5_1:
        out[i] = i < 16 ? q[i] & 15 : q[i - 16] >> 4;
        if (type == Q5_0 || type == Q5_1) out[i] |= (q[i / 8 - 4] >> (i % 8) & 1) << 4;
        break;
      case Q8_0: out[i] = block[2 + i] ^ 0x80; break;
      case Q2_K: out[i] = block[16 + j / 4 * 32 + i] >> (j % 4 * 2) & 3; break;
      case Q3_K:
        out[i] = (block[32 + j / 4 * 32 + i] >> (j % 4 * 2) & 3) | (block[i] >> j & 1) << 2;
        break;
      case Q4_K: case Q5_K:
        out[i] = j % 2 ? q[i] >> 4 : q[i] & 15;
        if (type == Q5_K) out[i] |= (block[16 + i] >> j & 1) << 4;
        break;
      case Q6_K: {
        const int half = j / 4, quarter = j % 4;
        const uint8_t low = block[half * 64 + quarter % 2 * 32 + i];
        out[i] = (quarter < 2 ? low & 15 : low >> 4) | (block[128 + half * 32 + i] >> (quarter * 2) & 3) << 4;
        break;
      }
      default: break;
    }
  }
}

// Puts the code of one row and column (of 32) into a packed block that is all zero so far.
void place(Codes kind, uint8_t* block, int row, int column, uint8_t code) {
  const int v = column / 4, byte = row * 4 + column % 4;
  switch (kind) {
    case Codes::bytes: block[v * 64 + byte] = code; return;
    case Codes::nibbles: case Codes::nibbles_1: case Codes::nibbles_2: case Codes::table:
      block[v % 4 * 64 + byte] |= (code & 15) << (v / 4 * 4);
      if (kind == Codes::nibbles_1) block[256 + v * 8 + byte / 8] |= (code >> 4) << (byte % 8);
      if (kind == Codes::nibbles_2) block[256 + v / 4 * 64 + byte] |= (code >> 4) << (v % 4 * 2);
      return;
    case Codes::pairs: case Codes::pairs_1:
      block[v / 4 * 64 + byte] |= (code & 3) << (v % 4 * 2);
      if (kind == Codes::pairs_1) block[128 + v * 8 + byte / 8] |= (code >> 2) << (byte % 8);
      return;
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

}  // namespace

void pack(Matrix m, const uint8_t* file_rows, int64_t begin, int64_t end, uint8_t* out) {
  const Layout& l = m.layout();
  for (int64_t p = begin; p < end; ++p) {
    uint8_t* panel = out + p * m.panel_size();
    std::memset(panel, 0, m.panel_size());
    const int rows = static_cast<int>(m.rows - p * 16 < 16 ? m.rows - p * 16 : 16);
    for (int r = 0; r < rows; ++r) {
      const uint8_t* row = file_rows + (p * 16 + r) * m.row_size();
      for (int64_t b = 0; b < m.cols / 32; ++b) {
        uint8_t codes[32];
        read_codes(m.type, row, b, codes);
        for (int i = 0; i < 32; ++i) place(l.codes, panel + b * l.code_bytes, r, i, codes[i]);
      }
      for (int64_t s = 0; s < m.cols / l.super; ++s)
        place_scales(m.type, row + s * l.file_bytes, r, panel + m.codes_size() + s * l.scale_bytes);
    }
  }
}

PackedMatrix::PackedMatrix(Type type, int64_t rows, int64_t cols, const uint8_t* file_rows, ThreadPool& pool)
    : view_{type, rows, cols, file_rows} {
  const Layout& l = kLayouts[type];
  if (rows < 0 || cols <= 0 || cols % l.file_block)
    throw std::invalid_argument(std::string(l.name) + " wants columns in blocks of " + std::to_string(l.file_block) + ", found " + std::to_string(cols));
  if (is_float(type)) return;
  memory_ = Buffer(view_.size());
  view_.data = memory_.data();
  pool.split(view_.panels(), [&](int64_t begin, int64_t end, int) { pack(view_, file_rows, begin, end, memory_.data()); });
}

}  // namespace vitral
