#include "experts.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "pack.h"

namespace vitral {
namespace {

// After so many steps of its layer a choice counts half: recency and frequency in one number (LRFU, Lee et
// al. 2001). With 187 of 32 x 8 experts kept and choices by Zipf's law, still or drawn anew every 50 to 200
// tokens, half-lives of 16 to 64 missed 13 to 19 % and the least recently used order 18 to 19 %.
constexpr double kHalfLife = 32;

// The system reads no more than its read-ahead window for one call, 128 KiB where nobody set it.
constexpr int64_t kReadAhead = 128 << 10;

void advise(const uint8_t* from, int64_t n, int advice) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<uintptr_t>(from) / page * page;
  madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(from) + n - begin, advice);  // a hint: it may be refused
}

int64_t file_size(const Matrix& m) { return m.rows * m.row_size(); }

}  // namespace

ExpertStore::ExpertStore(int64_t budget, ThreadPool& pool) : pool_(pool), reader_([this] { read_ahead(); }) { counts_.budget = budget; }

ExpertStore::~ExpertStore() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  asked_.notify_all();
  reader_.join();
}

void ExpertStore::add(int64_t layer, const std::array<Matrix*, 3>& matrices, const std::array<const uint8_t*, 3>& rows) {
  if (static_cast<int64_t>(layers_.size()) <= layer) layers_.resize(layer + 1), steps_.resize(layer + 1);
  Held& e = layers_[layer].emplace_back();
  e.matrices = matrices, e.rows = rows, e.size = 0;
  for (const Matrix* m : matrices) e.size += align64(m->size());
  if (e.size > counts_.budget)
    throw std::invalid_argument("an expert of layer " + std::to_string(layer) + " takes " + std::to_string(e.size) +
                                " bytes; the budget for experts is " + std::to_string(counts_.budget));
}

double ExpertStore::heat(const Held& e, int64_t layer) const { return e.heat * std::exp2((e.step - steps_[layer]) / kHalfLife); }

void ExpertStore::choose(int64_t layer, std::vector<int64_t>& experts) {
  std::deque<Held>& all = layers_[layer];
  ++steps_[layer];
  for (int64_t i : experts) {
    Held& e = all[i];
    e.heat = heat(e, layer) + 1, e.step = steps_[layer], e.used = ++now_;
    ++(e.memory.data() ? counts_.hits : counts_.misses);
  }
  std::stable_partition(experts.begin(), experts.end(), [&](int64_t i) { return all[i].memory.data() != nullptr; });
  for (int64_t i : experts)
    if (!all[i].memory.data()) ask(all[i]);
}

void ExpertStore::ask(Held& e) {
  if (e.asked) return;
  e.asked = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (int part = 0; part < 3; ++part) {
      e.read[part] = false;
      queue_.push_back({&e, part});
    }
  }
  asked_.notify_one();
}

void ExpertStore::fetch(int64_t layer, int64_t expert) {
  Held& e = layers_[layer][expert];
  if (e.memory.data()) return;
  ask(e);
  Buffer room;
  while (counts_.held + e.size > counts_.budget) evict_coldest(e.size, &room);
  if (!room.data()) room = Buffer(e.size);
  uint8_t* place = room.data();
  for (int part = 0; part < 3; ++part) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      read_.wait(lock, [&] { return e.read[part]; });
    }
    const Matrix& m = *e.matrices[part];
    pack_rows({{m, e.rows[part], place}}, pool_);
    // The pages stay in the system's cache for as long as it likes, but not in this process.
    advise(e.rows[part], file_size(m), MADV_DONTNEED);
    counts_.bytes_read += file_size(m);
    place += align64(m.size());
  }
  place = room.data();
  for (Matrix* m : e.matrices) m->data = place, place += align64(m->size());
  e.memory = std::move(room), e.asked = false;
  counts_.held += e.size;
}

// Of equals the one that was used last: layers come round in order, so it is the last to be needed again.
void ExpertStore::evict_coldest(int64_t wanted, Buffer* room) {
  Held* coldest = nullptr;
  double least = 0;
  for (size_t layer = 0; layer < layers_.size(); ++layer)
    for (Held& e : layers_[layer]) {
      if (!e.memory.data()) continue;
      const double h = heat(e, static_cast<int64_t>(layer));
      if (!coldest || h < least || (h == least && e.used > coldest->used)) coldest = &e, least = h;
    }
  counts_.held -= coldest->size;
  for (Matrix* m : coldest->matrices) m->data = nullptr;
  Buffer memory = std::move(coldest->memory);
  if (!room->data() && memory.size() == wanted) *room = std::move(memory);  // pages that are there need no zeroing
}

void ExpertStore::read_ahead() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    asked_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const Range next = queue_.front();
    queue_.pop_front();
    lock.unlock();
    const uint8_t* rows = next.expert->rows[next.part];
    const int64_t n = file_size(*next.expert->matrices[next.part]);
    for (int64_t at = 0; at < n; at += kReadAhead) advise(rows + at, std::min(kReadAhead, n - at), MADV_WILLNEED);
    lock.lock();
    next.expert->read[next.part] = true;
    read_.notify_all();
  }
}

}  // namespace vitral
