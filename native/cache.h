// Keys and values of all layers in pages; which page belongs to whom is the engine's business. What a page holds of
// all layers lies together: memory that no token has reached is never touched.
#pragma once
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace vitral {

class Cache {
 public:
  Cache(int64_t n_layers, int64_t n_kv_heads, int64_t head_dim, int64_t n_pages, int64_t page_size, KvType type)
      : n_layers_(n_layers), n_kv_heads_(n_kv_heads), head_dim_(head_dim), n_pages_(n_pages), page_size_(page_size), type_(type) {
    if (page_size < kKeyBlock || page_size % kKeyBlock)
      throw std::invalid_argument("page_size is " + std::to_string(page_size) + "; allowed: multiples of 16");
    if (in_pairs(type) && page_size % kPairs)
      throw std::invalid_argument("page_size is " + std::to_string(page_size) + "; allowed with bf16 and q8_0: multiples of 32");
    if (n_pages < 1 || n_pages > (int64_t{1} << 31) / page_size)
      throw std::invalid_argument("n_pages is " + std::to_string(n_pages) + "; allowed: 1 to 2^31 positions in all");
    head_bytes_ = page_size / kKeyBlock * kv_block_bytes(type, head_dim);
    // One page more: page n_pages is nobody's and pads short page tables.
    memory_ = Buffer((n_pages + 1) * stride());
  }

  int64_t n_pages() const { return n_pages_; }
  int64_t page_size() const { return page_size_; }
  int64_t n_layers() const { return n_layers_; }
  int64_t n_kv_heads() const { return n_kv_heads_; }
  int64_t head_dim() const { return head_dim_; }
  int64_t size() const { return n_pages_ * page_bytes(); }
  KvType type() const { return type_; }

  KvView view(int64_t layer, int64_t kv_head, const int32_t* pages) const {
    const uint8_t* keys = memory_.data() + (2 * layer * n_kv_heads_ + kv_head) * head_bytes_;
    return {type_, static_cast<int>(head_dim_), static_cast<int>(page_size_), keys, keys + n_kv_heads_ * head_bytes_, stride(), stride(), pages};
  }

  void copy_page(int64_t from, int64_t to) { std::memcpy(memory_.data() + to * stride(), memory_.data() + from * stride(), page_bytes()); }

 private:
  int64_t page_bytes() const { return 2 * n_layers_ * n_kv_heads_ * head_bytes_; }
  // Bytes from a page to the next: a head more, so that a head's blocks in pages side by side do not all fall into
  // the same sets of a processor's caches where a page is a power of two.
  int64_t stride() const { return page_bytes() + head_bytes_; }

  int64_t n_layers_, n_kv_heads_, head_dim_, n_pages_, page_size_, head_bytes_ = 0;
  KvType type_;
  Buffer memory_;
};

}  // namespace vitral
