// A matrix read backwards, x W instead of x W^T: the kernels of each instruction set.
#pragma once
#include <string>

#include "packed.h"

namespace vitral {

constexpr int64_t kBackRows = 256;  // rows whose products are summed before they join the rest

// Columns 32 b .. 32 b + 31 of the sum over `rows` rows from `first` on, a multiple of 16: x (rows, lanes) has the
// tokens' factors of these rows, lanes a multiple of 16; out (32, lanes). fma, rows ascending.
using BackBlock = void (*)(const Matrix&, int64_t first, int64_t rows, int64_t b, const float* x, int64_t lanes, float* out);

// Of an instruction set that is available, for a weight type.
BackBlock back_block_for(const std::string& isa, Type type);

}  // namespace vitral
