// A weight matrix that owns its panels.
#pragma once
#include <vector>

#include "memory.h"
#include "packed.h"
#include "threads.h"

namespace vitral {

// Rows of a GGUF tensor and the place for them, which has matrix.size() bytes.
struct Packing {
  Matrix matrix;
  const uint8_t* file_rows;
  uint8_t* out;
};

// Packs them all, or copies the rows where the type is a float. A thread takes the next piece when it has done one:
// what else runs on its processor slows no other.
void pack_rows(const std::vector<Packing>& list, ThreadPool& pool);

// Packs the rows of a GGUF tensor into memory of its own; a float type keeps pointing at the
// file's rows, which must outlive it.
class PackedMatrix {
 public:
  // std::invalid_argument where `cols` is not whole blocks of the type; std::bad_alloc.
  PackedMatrix(Type type, int64_t rows, int64_t cols, const uint8_t* file_rows, ThreadPool& pool);

  const Matrix& view() const { return view_; }
  int64_t owned_bytes() const { return memory_.size(); }

 private:
  Matrix view_;
  Buffer memory_;
};

}  // namespace vitral
