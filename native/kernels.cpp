// Compiled once for each instruction set, with VITRAL_ISA its name and its compiler flags.
#include "kernels.h"
#include "isa/this.h"

namespace vitral::VITRAL_ISA {
namespace {
#include "ops/matmul.h"
#include "ops/rows.h"
#include "ops/attention.h"

template <Type T>
void fill(Kernels& k) {
  if constexpr (is_float(T)) {
    k.matmul[T] = matmul_float<T>;
    k.row[T] = row_float<T>;
    k.unpack[T] = nullptr;
  } else {
    k.matmul[T] = matmul_packed<T>;
    k.row[T] = row_packed<T>;
    k.unpack[T] = unpack_packed<T>;
  }
  if constexpr (T + 1 < N_TYPES) fill<static_cast<Type>(T + 1)>(k);
}
}  // namespace

void fill_table(Kernels& k) {
  k.isa = VITRAL_NAME;
#if defined(VITRAL_TILES)
  k.tiles_from = kTileRowsFrom;
#else
  k.tiles_from = 0;
#endif
  fill<F32>(k);
  k.quantise = quantise;
  k.rms_scale = rms_scale;
  k.scale_row = scale_row;
  k.mul = multiply;
  k.add = add_rows;
  k.add_scaled = add_scaled;
  k.rotate = rotate;
  k.silu_mul = silu_mul;
  k.exp = exp_row;
  k.softmax = softmax;
  k.store_kv = store_kv;
  k.scores = scores_of;
  k.mix = mix;
  k.attention = attention;
}
}  // namespace vitral::VITRAL_ISA
