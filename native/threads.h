// One pool of threads. What a part of the work computes never depends on how many threads there are, nor on
// which of them takes it.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace vitral {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return n_; }

  // Several threads may ask at once: one round runs after another.
  // Calls task(worker) for each worker 0..size-1, worker 0 on this thread; returns when all are done.
  template <class Task>
  void each(const Task& task) {
    run([](const void* t, int worker) { (*static_cast<const Task*>(t))(worker); }, &task);
  }
  // Calls task(begin, end, worker) on contiguous parts of [0, n).
  template <class Task>
  void split(int64_t n, const Task& task) {
    if (n <= 1 || n_ == 1) {
      if (n > 0) task(int64_t{0}, n, 0);
      return;
    }
    each([&](int worker) {
      const int64_t begin = n * worker / n_, end = n * (worker + 1) / n_;
      if (begin < end) task(begin, end, worker);
    });
  }

  // Calls task(begin, end, worker) on parts of [0, n). Each worker begins with a part of its own and takes it
  // bite by bite; who is done helps the others.
  template <class Task>
  void share(int64_t n, const Task& task) {
    if (n <= 1 || n_ == 1) {
      if (n > 0) task(int64_t{0}, n, 0);
      return;
    }
    struct alignas(64) Part { std::atomic<int64_t> next; int64_t end; };
    std::vector<Part> parts(n_);
    const int64_t bite = std::max<int64_t>(n / n_ / kBites, 1);
    for (int worker = 0; worker < n_; ++worker) {
      parts[worker].next.store(n * worker / n_, std::memory_order_relaxed);
      parts[worker].end = n * (worker + 1) / n_;
    }
    each([&](int worker) {
      for (int i = 0; i < n_; ++i) {
        Part& part = parts[(worker + i) % n_];
        for (int64_t begin; (begin = part.next.fetch_add(bite, std::memory_order_relaxed)) < part.end;)
          task(begin, std::min(begin + bite, part.end), worker);
      }
    });
  }

 private:
  static constexpr int kBites = 8;  // of a worker's part
  using Call = void (*)(const void*, int);
  void run(Call call, const void* task);
  void serve(int worker);

  int n_;
  std::vector<std::thread> threads_;
  Call call_ = nullptr;
  const void* task_ = nullptr;
  alignas(64) std::atomic<uint64_t> round_{0};   // grows by one for each run
  alignas(64) std::atomic<int> pending_{0};      // workers that have not finished this round
  alignas(64) std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
  std::mutex running_;
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace vitral
