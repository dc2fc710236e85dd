#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vitral {
namespace {

// A waiting worker spins about this many pauses (some 50 microseconds), then parks.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_(n_threads < 1 ? 1 : n_threads) {
  for (int worker = 1; worker < n_; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void ThreadPool::run(Call call, const void* task) {
  std::lock_guard<std::mutex> one(running_);
  call_ = call;
  task_ = task;
  pending_.store(n_ - 1, std::memory_order_relaxed);
  round_.fetch_add(1);
  if (parked_.load() > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  call(task, 0);
  for (int spins = 0; pending_.load(std::memory_order_acquire) > 0; ++spins) {
    if (spins < kSpins) relax();
    else std::this_thread::yield();
  }
}

void ThreadPool::serve(int worker) {
  uint64_t seen = 0;
  for (;;) {
    int spins = 0;
    while (round_.load() == seen && spins < kSpins) {
      relax();
      ++spins;
    }
    if (round_.load() == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      parked_.fetch_add(1);
      wake_.wait(lock, [&] { return round_.load() != seen; });
      parked_.fetch_sub(1);
    }
    ++seen;
    if (stop_.load()) return;
    call_(task_, worker);
    pending_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace vitral
