// Experts of a mixture that is larger than memory. They stay in their mapped file; those that a router
// chooses are packed into memory of a fixed size, and leave it when others are chosen more often.
#pragma once
#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "memory.h"
#include "packed.h"
#include "threads.h"

namespace vitral {

struct ExpertCounts {
  int64_t budget, held;          // bytes
  int64_t hits, misses;          // experts that were in memory when they were chosen, and that were not
  int64_t bytes_read;            // of the file
};

class ExpertStore {
 public:
  // At most `budget` bytes of packed experts.
  ExpertStore(int64_t budget, ThreadPool& pool);
  ~ExpertStore();
  ExpertStore(const ExpertStore&) = delete;
  ExpertStore& operator=(const ExpertStore&) = delete;

  // The next expert of a layer: matrices without data, and the mapped rows of each, which must outlive
  // the store. A matrix is told its data when it is packed and loses it when it leaves.
  // std::invalid_argument where the budget does not hold it.
  void add(int64_t layer, const std::array<Matrix*, 3>& matrices, const std::array<const uint8_t*, 3>& rows);

  // A router has spoken: its choice, each expert once, is counted, what is missing is read ahead, and the
  // list comes back with those first that are in memory.
  void choose(int64_t layer, std::vector<int64_t>& experts);
  // The matrices of an expert have data until the next call.
  void fetch(int64_t layer, int64_t expert);

  ExpertCounts counts() const { return counts_; }

 private:
  struct Held {
    std::array<Matrix*, 3> matrices;
    std::array<const uint8_t*, 3> rows;
    int64_t size;            // bytes when packed
    Buffer memory;
    double heat = 0;         // as it was at `step` of its layer
    int64_t step = 0;
    int64_t used = 0;        // when it was chosen last, among all
    bool asked = false;      // the reader knows of it
    std::array<bool, 3> read{};  // guarded by mutex_, as `asked` is not
  };
  struct Range { Held* expert; int part; };

  double heat(const Held& e, int64_t layer) const;
  void ask(Held& e);
  void evict_coldest(int64_t wanted, Buffer* room);
  void read_ahead();

  ThreadPool& pool_;
  ExpertCounts counts_{};
  std::vector<std::deque<Held>> layers_;  // whose elements stay where they are
  std::vector<int64_t> steps_;            // how often each router has spoken
  int64_t now_ = 0;

  std::mutex mutex_;
  std::condition_variable asked_, read_;
  std::deque<Range> queue_;
  bool stop_ = false;
  std::thread reader_;
};

}  // namespace vitral
