// Instruction sets, packing and products for Python. Shapes and types were checked by
// vitral/native/__init__.py; what is checked here again is what would read out of bounds.
#include <nanobind/stl/tuple.h>

#include <memory>

#include "../activations.h"
#include "../dispatch.h"
#include "../pack.h"
#include "areas.h"
#include "arrays.h"

using namespace nb::literals;

namespace vitral {
namespace {

template <class T>
using Out = nb::ndarray<nb::numpy, T>;

void want(bool ok, const char* message) {
  if (!ok) throw nb::value_error(message);
}

nb::tuple quantise_rows(In<float, 2> x, const std::string& isa) {
  const int64_t rows = x.shape(0), cols = x.shape(1);
  want(cols % 32 == 0, "x: columns must be a multiple of 32");
  int8_t* c;
  float* s;
  int32_t* n;
  auto codes = make_array({x.shape(0), x.shape(1)}, &c);
  auto scales = make_array({x.shape(0), x.shape(1) / 32}, &s);
  auto sums = make_array({x.shape(0), x.shape(1) / 16}, &n);
  const Kernels& k = kernels_for(isa);
  const float* from = x.data();
  {
    nb::gil_scoped_release release;
    for (int64_t t = 0; t < rows; ++t) k.quantise(from + t * cols, cols, c + t * cols, s + t * (cols / 32), n + t * (cols / 16));
  }
  return nb::make_tuple(codes, scales, sums);
}

Out<float> matmul(const PackedMatrix& w, In<float, 2> x, ThreadPool& pool, const std::string& isa) {
  const Matrix& m = w.view();
  const int64_t rows = x.shape(0), cols = x.shape(1);
  want(cols == m.cols, "x: its columns must be the matrix's");
  float* to;
  auto out = make_array({x.shape(0), static_cast<size_t>(m.rows)}, &to);
  const Kernels& k = kernels_for(isa);
  const float* from = x.data();
  {
    nb::gil_scoped_release release;
    Activations a;
    a.resize(rows, cols, !is_float(m.type) && k.tiles_from && rows >= k.tiles_from);
    std::copy_n(from, rows * cols, a.x.data());
    if (!is_float(m.type)) pool.split(rows, [&](int64_t begin, int64_t end, int) { a.quantise(k, begin * cols, end * cols); });
    pool.split(is_float(m.type) ? m.rows : m.panels(),
               [&](int64_t begin, int64_t end, int) { k.matmul[m.type](m, a.view(), begin, end, to, m.rows); });
  }
  return out;
}

Out<float> rows_of(const PackedMatrix& w, In<int64_t, 1> which, const std::string& isa) {
  const Matrix& m = w.view();
  for (size_t i = 0; i < which.shape(0); ++i) want(which.data()[i] >= 0 && which.data()[i] < m.rows, "which: a row that the matrix does not have");
  float* to;
  auto out = make_array({which.shape(0), static_cast<size_t>(m.cols)}, &to);
  const Kernels& k = kernels_for(isa);
  for (size_t i = 0; i < which.shape(0); ++i) k.row[m.type](m, which.data()[i], to + i * m.cols);
  return out;
}

nb::tuple unpack(const PackedMatrix& w, const std::string& isa) {
  const Matrix& m = w.view();
  want(!is_float(m.type), "packed: a float matrix has no codes");
  const size_t rows = m.rows, cols = m.cols, groups = m.cols / m.layout().group;
  int8_t* c;
  float *s, *low;
  auto codes = make_array({rows, cols}, &c);
  auto scales = make_array({rows, groups}, &s), minima = make_array({rows, groups}, &low);
  const Kernels& k = kernels_for(isa);
  for (size_t r = 0; r < rows; ++r) k.unpack[m.type](m, r, c + r * cols, s + r * groups, low + r * groups);
  return nb::make_tuple(codes, scales, minima, m.layout().group, has_minima(m.layout().scales));
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("instruction_sets", [] {
    std::vector<std::tuple<std::string, bool, std::string>> rows;
    for (const IsaState& s : instruction_sets()) rows.emplace_back(s.name, s.available, s.reason);
    return rows;
  });
  // (op, weight type) of each kernel in a table; the type is empty where none is involved.
  m.def("kernels", [](const std::string& isa) {
    const Kernels& k = kernels_for(isa);
    std::vector<std::tuple<std::string, std::string>> rows{{"quantise", ""}};
    for (int t = 0; t < N_TYPES; ++t) {
      if (k.matmul[t]) rows.emplace_back("matmul", kLayouts[t].name);
      if (k.row[t]) rows.emplace_back("row", kLayouts[t].name);
      if (k.unpack[t]) rows.emplace_back("unpack", kLayouts[t].name);
    }
    return rows;
  }, "isa"_a);

  // (name, elements of a block, bytes of a block) of each weight type.
  m.def("types", [] {
    std::vector<std::tuple<std::string, int, int>> rows;
    for (const Layout& l : kLayouts) rows.emplace_back(l.name, l.file_block, l.file_bytes);
    return rows;
  });

  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("size", &ThreadPool::size);

  nb::class_<PackedMatrix>(m, "PackedMatrix")
      .def_prop_ro("type", [](const PackedMatrix& p) { return p.view().layout().name; })
      .def_prop_ro("rows", [](const PackedMatrix& p) { return p.view().rows; })
      .def_prop_ro("cols", [](const PackedMatrix& p) { return p.view().cols; })
      .def_prop_ro("nbytes", &PackedMatrix::owned_bytes);

  // A float matrix reads the caller's bytes for as long as it lives.
  m.def("pack", [](const std::string& type, In<uint8_t, 2> raw, ThreadPool& pool) {
    const Type t = type_named(type);
    const int64_t rows = raw.shape(0), cols = columns_of(t, raw.shape(1));
    const uint8_t* from = raw.data();
    nb::gil_scoped_release release;
    return std::make_unique<PackedMatrix>(t, rows, cols, from, pool);
  }, "type"_a, "raw"_a.noconvert(), "pool"_a, nb::keep_alive<0, 2>());
  m.def("quantise_rows", &quantise_rows, "x"_a.noconvert(), "isa"_a);
  m.def("matmul", &matmul, "packed"_a, "x"_a.noconvert(), "pool"_a, "isa"_a);
  m.def("rows_of", &rows_of, "packed"_a, "which"_a.noconvert(), "isa"_a);
  m.def("unpack", &unpack, "packed"_a, "isa"_a);
}

}  // namespace vitral
