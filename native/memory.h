// Bytes that kernels read: aligned, and in huge pages where the system allows.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

namespace vitral {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size) {
    if (size <= 0) return;
    void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (size >= (int64_t{4} << 20)) madvise(p, size, MADV_HUGEPAGE);  // a hint; refused where not allowed
#endif
    data_ = static_cast<uint8_t*>(p);
  }
  ~Buffer() {
    if (data_) munmap(data_, size_);
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

// Room for many matrices, side by side: one alone is often smaller than two huge pages and would get none.
// Memory that is left over at the end of a block is never touched, so it is not there.
class Arena {
 public:
  uint8_t* room(int64_t size) {
    if (size <= 0) return nullptr;
    const int64_t whole = (size + 63) / 64 * 64;
    if (whole > left_) {
      blocks_.emplace_back(whole > kBlock ? whole : kBlock);
      next_ = blocks_.back().data(), left_ = blocks_.back().size();
    }
    uint8_t* place = next_;
    next_ += whole, left_ -= whole, used_ += size;
    return place;
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kBlock = int64_t{64} << 20;

  std::vector<Buffer> blocks_;
  uint8_t* next_ = nullptr;
  int64_t left_ = 0, used_ = 0;
};

}  // namespace vitral
