// Compiled once for each instruction set, as kernels.cpp is.
#include "back.h"
#include "kernels.h"
#include "isa/this.h"

namespace vitral::VITRAL_ISA {
namespace {
#include "ops/matmul.h"
#include "ops/back.h"

template <Type T>
BackBlock find(Type type) {
  if (type == T) return back_block<T>;
  if constexpr (T + 1 < N_TYPES) return find<static_cast<Type>(T + 1)>(type);
  else return nullptr;
}
}  // namespace

BackBlock back_block_of(Type type) { return find<F32>(type); }
}  // namespace vitral::VITRAL_ISA
