// Model and cache, and what sampling needs from logits.
#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>

#include "../dispatch.h"
#include "../model.h"
#include "areas.h"
#include "arrays.h"

namespace vitral {
namespace {

// A model that one call at a time may use.
struct Door {
  std::vector<In<uint8_t, 2>> left;  // rows that stay in their file; they outlive the model
  Model model;
  std::mutex mutex;
  Door(const Config& c, const std::string& isa, int threads) : model(c, kernels_for(isa), threads) {}
};

int64_t entry(const nb::dict& d, const char* key) { return nb::cast<int64_t>(d[key]); }

Config config_from(const nb::dict& d) {
  return {entry(d, "dim"), entry(d, "n_layers"), entry(d, "n_heads"), entry(d, "n_kv_heads"), entry(d, "head_dim"),
          entry(d, "hidden_dim"), entry(d, "vocab_size"), entry(d, "sliding_window"), entry(d, "n_experts"),
          entry(d, "n_experts_per_token"), entry(d, "n_leading_dense"), nb::cast<float>(d["norm_eps"]), nb::cast<bool>(d["tied_embeddings"])};
}

constexpr const char* kKvNames[] = {"f32", "f16", "bf16", "q8_0"};

std::unique_ptr<Cache> make_cache(const Door& door, int64_t n_pages, int64_t page_size, const std::string& kv_type) {
  for (KvType type : {KvType::f32, KvType::f16, KvType::bf16, KvType::q8_0}) {
    const Config& c = door.model.config();
    if (kv_type == kKvNames[static_cast<int>(type)])
      return std::make_unique<Cache>(c.n_layers, c.n_kv_heads, c.head_dim, n_pages, page_size, type);
  }
  throw std::invalid_argument("kv_type is '" + kv_type + "'; allowed: f32, f16, bf16, q8_0");
}

// Calls `on_tap(name, array, sequence)`: on the spot with a view that it may write to, or later with a copy. Python
// finds the caches full of weights when it is called between two products, and takes ten times as long.
class Shown {
 public:
  Shown(const nb::object& on_tap, bool later) : on_tap_(on_tap), later_(later) {}

  void see(const std::string& name, void* data, const std::vector<int64_t>& shape, bool whole, int sequence) {
    if (!later_) {
      nb::gil_scoped_acquire acquired;
      call(name, data, shape, whole, sequence);
      return;
    }
    size_t bytes = 4;  // of an int32 or a float
    for (int64_t n : shape) bytes *= static_cast<size_t>(n);
    const auto* from = static_cast<const uint8_t*>(data);
    kept_.push_back({name, std::vector<uint8_t>(from, from + bytes), shape, whole, sequence});
    bytes_ += bytes;
    if (bytes_ > kMost) deliver();
  }

  void deliver() {
    nb::gil_scoped_acquire acquired;
    for (Kept& k : kept_) call(k.name, k.bytes.data(), k.shape, k.whole, k.sequence);
    kept_.clear();
    bytes_ = 0;
  }

 private:
  struct Kept {
    std::string name;
    std::vector<uint8_t> bytes;
    std::vector<int64_t> shape;
    bool whole;
    int sequence;
  };
  static constexpr size_t kMost = 16 << 20;  // bytes of copies that wait

  void call(const std::string& name, void* data, const std::vector<int64_t>& shape, bool whole, int sequence) {
    std::vector<size_t> sizes(shape.begin(), shape.end());
    if (whole) on_tap_(name, nb::ndarray<nb::numpy, int32_t>(data, sizes.size(), sizes.data(), nb::none()), sequence);
    else on_tap_(name, nb::ndarray<nb::numpy, float>(data, sizes.size(), sizes.data(), nb::none()), sequence);
  }

  nb::object on_tap_;
  bool later_;
  std::vector<Kept> kept_;
  size_t bytes_ = 0;
};

nb::ndarray<nb::numpy, float> forward(Door& door, Cache& cache, In<int32_t, 1> ids, In<int32_t, 1> positions, In<int32_t, 1> sequences,
                                      In<int32_t, 2> pages, In<int32_t, 1> wanted, const std::vector<std::string>& names,
                                      const nb::object& on_tap, In<int32_t, 1> adapters, const std::vector<int32_t>& attention_of,
                                      bool later) {
  const size_t T = ids.shape(0);
  if (positions.shape(0) != T || sequences.shape(0) != T)
    throw std::invalid_argument("ids, positions and sequences differ in length: " + std::to_string(T) + ", " +
                                std::to_string(positions.shape(0)) + ", " + std::to_string(sequences.shape(0)));
  if (adapters.shape(0) && adapters.shape(0) != T)
    throw std::invalid_argument("adapters has " + std::to_string(adapters.shape(0)) + " numbers for " + std::to_string(T) + " tokens");
  for (size_t t = 0; t < T; ++t)
    if (sequences.data()[t] < 0 || static_cast<size_t>(sequences.data()[t]) >= pages.shape(0))
      throw std::invalid_argument("token " + std::to_string(t) + " has sequence " + std::to_string(sequences.data()[t]) + " of " +
                                  std::to_string(pages.shape(0)));
  Step step{static_cast<int64_t>(T), static_cast<int64_t>(wanted.shape(0)), static_cast<int64_t>(pages.shape(1)), ids.data(),
            positions.data(), sequences.data(), pages.data(), wanted.data(), adapters.shape(0) ? adapters.data() : nullptr};
  float* logits;
  auto result = make_array<float, 2>({wanted.shape(0), static_cast<size_t>(door.model.config().vocab_size)}, &logits);
  Shown shown(on_tap, later);
  Taps taps;
  taps.attention_of.insert(attention_of.begin(), attention_of.end());
  taps.names.insert(names.begin(), names.end());
  taps.see = [&shown](const auto&... value) { shown.see(value...); };
  nb::gil_scoped_release released;
  std::lock_guard<std::mutex> lock(door.mutex);
  door.model.forward(cache, step, &taps, logits);
  if (later) shown.deliver();
  return result;
}

Weight weight_from(const std::string& name, const std::string& type_name, const In<uint8_t, 2>& raw) {
  const Type type = type_named(type_name);
  return {name, type, raw.data(), static_cast<int64_t>(raw.shape(0)), columns_of(type, raw.shape(1))};
}

// Lists of equal length. Python is left alone until all are packed: a thread that asks for it between two
// weights waits for its turn, some milliseconds each time.
void set_weights(Door& door, const std::vector<std::string>& names, const std::vector<std::string>& type_names,
                 const std::vector<In<uint8_t, 2>>& raw) {
  if (type_names.size() != names.size() || raw.size() != names.size()) throw std::invalid_argument("names, types and raw differ in length");
  nb::gil_scoped_release released;
  std::lock_guard<std::mutex> lock(door.mutex);
  std::vector<Weight> list;
  for (size_t i = 0; i < names.size(); ++i) list.push_back(weight_from(names[i], type_names[i], raw[i]));
  door.model.set_weights(list);
}

void leave_weight(Door& door, const std::string& name, const std::string& type_name, In<uint8_t, 2> raw) {
  std::lock_guard<std::mutex> lock(door.mutex);
  door.model.leave_weight(weight_from(name, type_name, raw));
  door.left.push_back(std::move(raw));
}

void limit_experts(Door& door, int64_t budget) {
  std::lock_guard<std::mutex> lock(door.mutex);
  door.model.limit_experts(budget);
}

// What a step may be changing at this moment.
template <class Read>
auto read_locked(Door& door, const Read& read) {
  nb::gil_scoped_release released;
  std::lock_guard<std::mutex> lock(door.mutex);
  return read(door.model);
}

nb::dict expert_counts(Door& door) {
  const ExpertCounts c = read_locked(door, [](const Model& m) { return m.expert_counts(); });
  nb::dict d;
  d["budget_bytes"] = c.budget, d["held_bytes"] = c.held, d["hits"] = c.hits, d["misses"] = c.misses, d["bytes_read"] = c.bytes_read;
  return d;
}

// Lists of equal length: a is (rank, columns), b (rows, rank).
void set_adapter(Door& door, int32_t id, const std::vector<std::string>& names, const std::vector<In<float, 2>>& a,
                 const std::vector<In<float, 2>>& b, const std::vector<float>& scales) {
  if (a.size() != names.size() || b.size() != names.size() || scales.size() != names.size())
    throw std::invalid_argument("names, a, b and scales differ in length");
  std::vector<AdapterPart> parts;
  for (size_t i = 0; i < names.size(); ++i) {
    if (a[i].shape(0) != b[i].shape(1)) throw std::invalid_argument("adapter of " + names[i] + ": a and b differ in rank");
    parts.push_back({names[i], a[i].data(), b[i].data(), static_cast<int64_t>(a[i].shape(0)), static_cast<int64_t>(b[i].shape(0)),
                     static_cast<int64_t>(a[i].shape(1)), scales[i]});
  }
  nb::gil_scoped_release released;
  std::lock_guard<std::mutex> lock(door.mutex);
  door.model.set_adapter(id, parts);
}

void remove_adapter(Door& door, int32_t id) {
  nb::gil_scoped_release released;
  std::lock_guard<std::mutex> lock(door.mutex);
  door.model.remove_adapter(id);
}

nb::ndarray<nb::numpy, float> project_back(Door& door, const std::string& name, In<float, 2> x) {
  const auto [rows, cols] = door.model.shape_of(name);
  if (static_cast<int64_t>(x.shape(1)) != rows)
    throw std::invalid_argument("x has " + std::to_string(x.shape(1)) + " columns; " + name + " has " + std::to_string(rows) + " rows");
  float* out;
  auto result = make_array<float, 2>({x.shape(0), static_cast<size_t>(cols)}, &out);
  nb::gil_scoped_release released;
  std::lock_guard<std::mutex> lock(door.mutex);
  door.model.project_back(name, x.data(), x.shape(0), out);
  return result;
}

void set_rope(Door& door, In<float, 2> cos, In<float, 2> sin) {
  const size_t half = door.model.config().head_dim / 2;
  if (cos.shape(1) != half || sin.shape(1) != half || cos.shape(0) != sin.shape(0))
    throw std::invalid_argument("cos and sin must both be (positions, " + std::to_string(half) + ")");
  nb::gil_scoped_release released;
  std::lock_guard<std::mutex> lock(door.mutex);
  door.model.set_rope(cos.data(), sin.data(), cos.shape(0));
}

int64_t argmax(In<float, 1> x) {
  if (!x.shape(0)) throw std::invalid_argument("no logits");
  return std::max_element(x.data(), x.data() + x.shape(0)) - x.data();
}

// Positions of the n largest, largest first; of equals the lower position first.
nb::ndarray<nb::numpy, int32_t> top_n(In<float, 1> x, size_t n) {
  n = std::min(n, x.shape(0));
  int32_t* out;
  auto result = make_array<int32_t, 1>({n}, &out);
  nb::gil_scoped_release released;
  std::vector<int32_t> order(x.shape(0));
  std::iota(order.begin(), order.end(), 0);
  const float* p = x.data();
  std::partial_sort_copy(order.begin(), order.end(), out, out + n, [p](int32_t a, int32_t b) { return p[a] > p[b] || (p[a] == p[b] && a < b); });
  return result;
}

// The same for each row.
nb::ndarray<nb::numpy, int32_t> top_rows(In<float, 2> x, size_t n) {
  const size_t rows = x.shape(0), cols = x.shape(1);
  n = std::min(n, cols);
  int32_t* out;
  auto result = make_array<int32_t, 2>({rows, n}, &out);
  nb::gil_scoped_release released;
  if (!n) return result;
  for (size_t r = 0; r < rows; ++r) {
    const float* p = x.data() + r * cols;
    int32_t* best = out + r * n;
    size_t held = 0;  // a short sorted list: a later equal never displaces an earlier one
    for (size_t c = 0; c < cols; ++c) {
      if (held == n && !(p[c] > p[best[n - 1]])) continue;
      size_t at = held < n ? held++ : n - 1;
      for (; at > 0 && p[c] > p[best[at - 1]]; --at) best[at] = best[at - 1];
      best[at] = static_cast<int32_t>(c);
    }
  }
  return result;
}

}  // namespace

void bind_model(nb::module_& m) {
  nb::class_<Cache>(m, "Cache")
      .def_prop_ro("n_pages", &Cache::n_pages)
      .def_prop_ro("page_size", &Cache::page_size)
      .def_prop_ro("nbytes", &Cache::size)
      .def_prop_ro("kv_type", [](const Cache& c) { return kKvNames[static_cast<int>(c.type())]; })
      .def("copy_page", [](Cache& c, int64_t from, int64_t to) {
        if (from < 0 || to < 0 || from >= c.n_pages() || to >= c.n_pages())
          throw std::out_of_range("pages " + std::to_string(from) + ", " + std::to_string(to) + " of " + std::to_string(c.n_pages()));
        c.copy_page(from, to);
      });
  nb::class_<Door>(m, "Model")
      .def("__init__", [](Door* self, const nb::dict& d, const std::string& isa, int threads) {
        if (threads < 1 || threads > 1024) throw std::invalid_argument("threads is " + std::to_string(threads) + "; allowed: 1 to 1024");
        new (self) Door(config_from(d), isa, threads);
      }, nb::arg("config"), nb::arg("isa"), nb::arg("threads"))
      .def("set_weights", &set_weights, nb::arg("names"), nb::arg("types"), nb::arg("raw"))
      .def("limit_experts", &limit_experts, nb::arg("budget"))
      .def("leave_weight", &leave_weight, nb::arg("name"), nb::arg("type"), nb::arg("raw"))
      .def("finish", [](Door& d) { d.model.finish(); })
      .def("set_rope", &set_rope, nb::arg("cos"), nb::arg("sin"))
      .def("new_cache", &make_cache, nb::arg("n_pages"), nb::arg("page_size"), nb::arg("kv_type"))
      .def("forward", &forward, nb::arg("cache"), nb::arg("ids"), nb::arg("positions"), nb::arg("sequences"), nb::arg("pages"),
           nb::arg("wanted"), nb::arg("taps"), nb::arg("on_tap").none(), nb::arg("adapters"), nb::arg("attention_of"),
           nb::arg("later"))
      .def("set_adapter", &set_adapter, nb::arg("id"), nb::arg("names"), nb::arg("a"), nb::arg("b"), nb::arg("scales"))
      .def("project_back", &project_back, nb::arg("name"), nb::arg("x"))
      .def("remove_adapter", &remove_adapter, nb::arg("id"))
      .def_prop_ro("isa", [](const Door& d) { return d.model.kernels().isa; })
      .def_prop_ro("threads", [](const Door& d) { return d.model.n_threads(); })
      .def_prop_ro("weight_bytes", [](Door& d) { return read_locked(d, [](const Model& m) { return m.weight_bytes(); }); })
      .def_prop_ro("expert_counts", &expert_counts);
  m.def("argmax", &argmax, nb::arg("x"));
  m.def("top_n", &top_n, nb::arg("x"), nb::arg("n"));
  m.def("top_rows", &top_rows, nb::arg("x"), nb::arg("n"));
}

}  // namespace vitral
