// The input of products: rows of floats and their 8-bit form, in the order that the kernels read.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace vitral {

// Values in whole lines of memory.
template <class V>
class Lines {
 public:
  void resize(int64_t n) { lines_.resize((n * sizeof(V) + sizeof(Line) - 1) / sizeof(Line)); }
  V* data() { return reinterpret_cast<V*>(lines_.data()); }
  const V* data() const { return reinterpret_cast<const V*>(lines_.data()); }

 private:
  struct alignas(64) Line { uint8_t bytes[64]; };
  std::vector<Line> lines_;
};

// The 8-bit form counts only where somebody quantised.
struct Activations {
  std::vector<float> x;
  Lines<int8_t> codes;
  Lines<float> scales, lows;
  Lines<int32_t> sums;
  int64_t rows = 0, cols = 0;
  bool tiled = false;

  void resize(int64_t r, int64_t c, bool in_tiles) {
    rows = r, cols = c, tiled = in_tiles;
    x.resize(r * c);
    const int64_t room = tiled ? (r + 15) / 16 * 16 : r, blocks = (c + 31) / 32;
    codes.resize(room * c);
    scales.resize(room * blocks);
    if (tiled) lows.resize(room * blocks * 3);
    else sums.resize(room * blocks * 2);
  }

  Rows view() const { return {rows, cols, x.data(), codes.data(), scales.data(), sums.data(), tiled ? lows.data() : nullptr}; }

  // n rows from `first` on; of what is tiled, all.
  Rows view(int64_t first, int64_t n) const {
    if (tiled) return view();
    return {n, cols, x.data() + first * cols, codes.data() + first * cols, scales.data() + first * (cols / 32), sums.data() + first * (cols / 16)};
  }

  // Elements [begin, end) of x, whole blocks of 32 columns; of what is tiled, whole rows.
  void quantise(const Kernels& kernels, int64_t begin, int64_t end) {
    if (!tiled) return kernels.quantise(x.data() + begin, end - begin, codes.data() + begin, scales.data() + begin / 32, sums.data() + begin / 16);
    const int64_t blocks = cols / 32;
    begin /= cols, end /= cols;
    std::vector<int8_t> row(cols);
    std::vector<float> some_scales(16 * blocks);
    std::vector<int32_t> some_sums(32 * blocks);
    while (begin < end) {  // what several threads write into one line of memory goes there at once
      const int64_t n = std::min(16 - begin % 16, end - begin);
      for (int64_t t = 0; t < n; ++t) {
        kernels.quantise(x.data() + (begin + t) * cols, cols, row.data(), some_scales.data() + t * blocks, some_sums.data() + t * blocks * 2);
        place_codes(row.data(), begin + t);
      }
      place(some_scales.data(), some_sums.data(), n, begin);
      begin += n;
    }
  }

  // Row `to` becomes row `row` of `from`, which is not tiled.
  void take(const Activations& from, int64_t row, int64_t to) {
    const int64_t blocks = cols / 32;
    std::copy_n(from.x.data() + row * cols, cols, x.data() + to * cols);
    const int8_t* c = from.codes.data() + row * cols;
    const float* s = from.scales.data() + row * blocks;
    const int32_t* n = from.sums.data() + row * blocks * 2;
    if (tiled) {
      place_codes(c, to);
      place(s, n, 1, to);
    } else {
      std::copy_n(c, cols, codes.data() + to * cols);
      std::copy_n(s, blocks, scales.data() + to * blocks);
      std::copy_n(n, blocks * 2, sums.data() + to * blocks * 2);
    }
  }

 private:
  void place_codes(const int8_t* row, int64_t t) {
    int8_t* to = codes.data() + t / 16 * 16 * cols + t % 16 * 32;
    for (int64_t b = 0; b < cols / 32; ++b) std::memcpy(to + b * 512, row + b * 32, 32);
  }
  // Scales and sums of n rows, from row `first` of a tile on.
  void place(const float* some_scales, const int32_t* some_sums, int64_t n, int64_t first) {
    const int64_t blocks = cols / 32;
    float *to = scales.data() + first / 16 * blocks * 16 + first % 16, *low = lows.data() + first / 16 * blocks * 48 + first % 16;
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t t = 0; t < n; ++t) {
        const float scale = to[b * 16 + t] = some_scales[t * blocks + b];
        const int32_t *halves = some_sums + (t * blocks + b) * 2;
        low[b * 48 + t] = scale * static_cast<float>(halves[0] + halves[1]);
        low[b * 48 + 16 + t] = scale * static_cast<float>(halves[0]);
        low[b * 48 + 32 + t] = scale * static_cast<float>(halves[1]);
      }
  }
};

}  // namespace vitral
