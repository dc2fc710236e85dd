// A weight matrix that owns its panels.
#pragma once
#include "memory.h"
#include "packed.h"
#include "threads.h"

namespace vitral {

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
