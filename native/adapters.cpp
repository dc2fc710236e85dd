#include "adapters.h"

#include <cstring>
#include <map>
#include <stdexcept>

#include "model.h"

namespace vitral {

const Matrix* Model::adaptable(const std::string& name) const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    if (name.compare(0, block.size(), block)) continue;
    const Layer& layer = layers_[i];
    const std::string part = name.substr(block.size());
    if (part == "attn.q.weight") return &layer.q;
    if (part == "attn.k.weight") return &layer.k;
    if (part == "attn.v.weight") return &layer.v;
    if (part == "attn.o.weight") return &layer.o;
    for (size_t e = 0; e < layer.experts.size(); ++e) {
      const std::string mlp = layer.is_mixture() ? "mlp.experts." + std::to_string(e) + "." : "mlp.";
      if (part == mlp + "gate.weight") return &layer.experts[e].gate;
      if (part == mlp + "up.weight") return &layer.experts[e].up;
      if (part == mlp + "down.weight") return &layer.experts[e].down;
    }
  }
  throw std::invalid_argument("no matrix that an adapter can add to is called " + name);
}

void Model::set_adapter(int32_t id, const std::vector<AdapterPart>& parts) {
  if (id < 0) throw std::invalid_argument("an adapter's number is " + std::to_string(id) + "; allowed: from 0");
  if (adapters_.count(id)) throw std::invalid_argument("adapter " + std::to_string(id) + " is loaded already");
  Adapter adapter;
  auto keep = [&](const float* values, int64_t rows, int64_t cols) {
    Buffer memory(rows * cols * sizeof(float));
    std::memcpy(memory.data(), values, rows * cols * sizeof(float));
    const Matrix m{F32, rows, cols, memory.data()};
    adapter.memory.push_back(std::move(memory));
    return m;
  };
  for (const AdapterPart& part : parts) {
    const Matrix* base = adaptable(part.name);
    if (base->rows != part.rows || base->cols != part.cols || part.rank < 1)
      throw std::invalid_argument("adapter of " + part.name + ": " + std::to_string(part.rows) + " x " + std::to_string(part.cols) +
                                  "; the matrix is " + std::to_string(base->rows) + " x " + std::to_string(base->cols));
    const Matrix a = keep(part.a, part.rank, part.cols), b = keep(part.b, part.rows, part.rank);
    adapter.parts[base] = {a, b, part.scale};
  }
  adapters_[id] = std::move(adapter);
}

void Model::remove_adapter(int32_t id) {
  if (!adapters_.erase(id)) throw std::invalid_argument("adapter " + std::to_string(id) + " is not loaded");
}

// Rows of one adapter are gathered, so that many tokens of a request share the reads of A and B. Each
// row's sums are its own, whatever rows it is gathered with.
void Model::add_low_rank(const std::vector<Product>& list, const int32_t* adapters) {
  const Rows& rows = list.front().in;
  std::map<int32_t, std::vector<int64_t>> groups;
  for (int64_t t = 0; t < rows.rows; ++t)
    if (adapters[t] >= 0) groups[adapters[t]].push_back(t);
  auto multiply = [&](const Matrix& m, const float* x, int64_t n, float* out) {
    const Rows in{n, m.cols, x};
    pool_.split((m.rows + 3) / 4, [&](int64_t begin, int64_t end, int) {
      kernels_.matmul[F32](m, in, begin * 4, end * 4 < m.rows ? end * 4 : m.rows, out, m.rows);
    });
  };
  std::vector<float> x, low, high;
  for (const auto& [id, places] : groups) {
    const Adapter& adapter = adapters_.at(id);
    const int64_t n = static_cast<int64_t>(places.size());
    x.clear();
    for (const Product& p : list) {
      auto found = adapter.parts.find(p.matrix);
      if (found == adapter.parts.end()) continue;
      const LowRank& part = found->second;
      if (x.empty())
        for (int64_t t : places) x.insert(x.end(), rows.x + t * rows.cols, rows.x + (t + 1) * rows.cols);
      low.resize(n * part.a.rows);
      high.resize(n * part.b.rows);
      multiply(part.a, x.data(), n, low.data());
      multiply(part.b, low.data(), n, high.data());
      for (int64_t i = 0; i < n; ++i)
        kernels_.add_scaled(high.data() + i * part.b.rows, part.scale, part.b.rows, p.out + places[i] * part.b.rows);
    }
  }
}

}  // namespace vitral
