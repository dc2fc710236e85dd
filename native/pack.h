// A weight matrix that owns its panels.
#pragma once
#include <cstring>

#include "memory.h"
#include "packed.h"
#include "threads.h"

namespace vitral {

// All rows of a GGUF tensor into `out`, which has m.size() bytes: packed, or copied where the type is a float.
inline void pack_rows(const Matrix& m, const uint8_t* file_rows, uint8_t* out, ThreadPool& pool) {
  if (is_float(m.type)) {
    pool.split(m.rows, [&](int64_t begin, int64_t end, int) {
      std::memcpy(out + begin * m.row_size(), file_rows + begin * m.row_size(), (end - begin) * m.row_size());
    });
  } else {
    pool.split(m.panels(), [&](int64_t begin, int64_t end, int) { pack(m, file_rows, begin, end, out); });
  }
}

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
