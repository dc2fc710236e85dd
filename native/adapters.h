// Low-rank adapters (LoRA, arXiv 2106.09685): what the product with a matrix gains for the tokens of some requests.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "packed.h"

namespace vitral {

// out = fma(scale, B (A x), out), as `low_rank` of src/vitral/model/law.py: A is rank x cols, B rows x rank, in floats.
struct LowRank {
  Matrix a, b;
  float scale = 0;
};

struct Adapter {
  std::unordered_map<const Matrix*, LowRank> parts;  // by the matrix of the model that they add to
  std::vector<Buffer> memory;
};

// One part as it comes in, by the canonical name of its matrix.
struct AdapterPart {
  std::string name;
  const float *a, *b;
  int64_t rank, rows, cols;
  float scale;
};

}  // namespace vitral
