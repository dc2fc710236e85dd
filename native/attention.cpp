// The attention part of Model: heads, rotation, cache, mix.
#include <algorithm>
#include <atomic>

#include "run.h"

namespace vitral {

void Model::attention(Run& run, int64_t i) {
  const Config& c = config_;
  const Layer& layer = layers_[i];
  const int64_t T = run.T, H = c.n_heads, K = c.n_kv_heads, D = c.head_dim;
  const std::string attn = run.tapped() ? "blocks." + std::to_string(i) + ".attn." : "";
  const Rows h = run.h.view();
  products({{&layer.q, h, run.q.data()}, {&layer.k, h, run.k.data()}, {&layer.v, h, run.v.data()}}, run.step.adapters);
  run.tap(attn, "hook_q", run.q.data(), {T, H, D});
  run.tap(attn, "hook_k", run.k.data(), {T, K, D});
  run.tap(attn, "hook_v", run.v.data(), {T, K, D});
  auto rotate = [&](int64_t t) {
    const float *cos = cos_.data() + run.step.positions[t] * D / 2, *sin = sin_.data() + run.step.positions[t] * D / 2;
    kernels_.rotate(run.q.data() + t * H * D, static_cast<int>(H), static_cast<int>(D), cos, sin);
    kernels_.rotate(run.k.data() + t * K * D, static_cast<int>(K), static_cast<int>(D), cos, sin);
  };
  auto store = [&](int64_t t) {
    const int64_t position = run.step.positions[t], slot = position % run.cache.page_size();
    const int32_t* pages = run.step.pages + run.step.sequences[t] * run.step.table_width;
    for (int64_t h = 0; h < K; ++h) {
      const KvView view = run.cache.view(i, h, pages);
      const int64_t page = pages[position / view.page_size], block = slot / kKeyBlock * kv_block_bytes(view.type, D);
      uint8_t* keys = const_cast<uint8_t*>(view.keys) + page * view.key_stride + block;
      uint8_t* values = const_cast<uint8_t*>(view.values) + page * view.value_stride + block;
      kernels_.store_kv(run.k.data() + (t * K + h) * D, run.v.data() + (t * K + h) * D, view.type, static_cast<int>(D),
                        static_cast<int>(slot % kKeyBlock), keys, values);
    }
  };
  if (run.tapped()) {
    for (int64_t t = 0; t < T; ++t) rotate(t);
    run.tap(attn, "hook_rot_q", run.q.data(), {T, H, D});
    run.tap(attn, "hook_rot_k", run.k.data(), {T, K, D});
    for (int64_t t = 0; t < T; ++t) store(t);
  } else {
    // Two tokens of a block of 16 keys share cache lines but no byte.
    pool_.split(T, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) rotate(t), store(t);
    });
  }
  if (run.tapped(attn + "hook_attn_scores") || run.tapped(attn + "hook_pattern")) {
    std::vector<RunPart> seen, others;
    for (const RunPart& part : run.parts) (run.taps->attention_of.count(part.sequence) ? seen : others).push_back(part);
    attend(run, others, i);
    attend_seen(run, seen, i);
  } else {
    attend(run, run.parts, i);
  }
  run.tap(attn, "hook_z", run.z.x.data(), {T, H, D});
  if (!is_float(layer.o.type)) pool_.split(T, [&](int64_t begin, int64_t end, int) { run.z.quantise(kernels_, begin * H * D, end * H * D); });
  products({{&layer.o, run.z.view(), run.out.data()}}, run.step.adapters);
}

void Model::attend(Run& run, const std::vector<RunPart>& parts, int64_t i) {
  const Config& c = config_;
  const int64_t H = c.n_heads, K = c.n_kv_heads, D = c.head_dim, G = H / K;
  struct Task { const RunPart* part; int64_t token, n; };
  if (parts.empty()) return;
  const int64_t tokens = std::max<int64_t>(kQueryTiles / G, 1);  // of a sequence that one task attends for
  std::vector<Task> blocks;
  int64_t longest = 0;
  for (const RunPart& part : parts) {
    for (int64_t t = 0; t < part.n; t += tokens) blocks.push_back({&part, t, std::min(tokens, part.n - t)});
    longest = std::max(longest, part.position + part.n);
  }
  for (std::vector<float>& s : scratch_) s.resize(std::max<size_t>(s.size(), attention_scratch(longest)));
  // One task for all heads that share keys, unless that leaves threads without work.
  const int64_t n_blocks = static_cast<int64_t>(blocks.size());
  const int64_t share = n_blocks * K >= pool_.size() ? G : 1, per_block = H / share;
  const int64_t n_tasks = n_blocks * per_block;
  auto work = [&](int64_t n, int worker) {
    const Task& task = blocks[n_blocks - 1 - n / per_block];  // the longest first
    const int64_t head = n % per_block * share;
    const int32_t* pages = run.step.pages + task.part->sequence * run.step.table_width;
    const int64_t offset = (task.part->first + task.token) * H * D + head * D;
    const Queries queries{run.q.data() + offset, run.z.x.data() + offset, H * D, static_cast<int>(task.n),
                          static_cast<int>(share), task.part->position + task.token, c.sliding_window};
    kernels_.attention(queries, run.cache.view(i, head / G, pages), scratch_[worker].data());
  };
  std::atomic<int64_t> next{0};
  if (n_tasks == 1 || pool_.size() == 1) {
    for (int64_t n = 0; n < n_tasks; ++n) work(n, 0);
    return;
  }
  pool_.each([&](int worker) {
    for (int64_t n; (n = next.fetch_add(1)) < n_tasks;) work(n, worker);
  });
}

// The same with scores and patterns laid out for a tap to see or change.
void Model::attend_seen(Run& run, const std::vector<RunPart>& parts, int64_t i) {
  const Config& c = config_;
  const int64_t H = c.n_heads, D = c.head_dim, G = H / c.n_kv_heads;
  const std::string attn = "blocks." + std::to_string(i) + ".attn.";
  for (const RunPart& part : parts) {
    const int64_t S = part.position + part.n;
    const int32_t* pages = run.step.pages + part.sequence * run.step.table_width;
    std::vector<float> rows(H * part.n * S, -__builtin_inff());
    auto each = [&](auto work) {
      pool_.split(H * part.n, [&](int64_t begin, int64_t end, int) {
        for (int64_t n = begin; n < end; ++n) {
          const int64_t head = n / part.n, t = n % part.n;
          work(run.cache.view(i, head / G, pages), rows.data() + n * S, ((part.first + t) * H + head) * D, part.position + t);
        }
      });
    };
    each([&](const KvView& view, float* row, int64_t at, int64_t position) {
      kernels_.scores(run.q.data() + at, view, position, c.sliding_window, row);
    });
    run.tap(attn, "hook_attn_scores", rows.data(), {H, part.n, S}, false, part.sequence);
    each([&](const KvView&, float* row, int64_t, int64_t) { kernels_.softmax(row, S); });
    run.tap(attn, "hook_pattern", rows.data(), {H, part.n, S}, false, part.sequence);
    each([&](const KvView& view, float* row, int64_t at, int64_t) { kernels_.mix(row, view, 0, S - 1, run.z.x.data() + at); });
  }
}

}  // namespace vitral
