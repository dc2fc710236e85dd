// NumPy arrays at the border.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "../kernels.h"

namespace nb = nanobind;

namespace vitral {

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

template <class T, size_t N>
nb::ndarray<nb::numpy, T> make_array(const size_t (&shape)[N], T** data) {
  size_t size = 1;
  for (size_t n : shape) size *= n;
  *data = new T[size ? size : 1];
  nb::capsule owner(*data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T>(*data, N, shape, owner);
}

inline Type type_named(const std::string& name) {
  for (int t = 0; t < N_TYPES; ++t)
    if (name == kLayouts[t].name) return static_cast<Type>(t);
  throw std::invalid_argument("weight type '" + name + "' does not exist");
}

inline int64_t columns_of(Type type, int64_t row_bytes) {
  const Layout& l = kLayouts[type];
  if (row_bytes % l.file_bytes)
    throw std::invalid_argument(std::string("rows of ") + l.name + " are multiples of " + std::to_string(l.file_bytes) + " bytes, found " +
                                std::to_string(row_bytes));
  return row_bytes / l.file_bytes * l.file_block;
}

}  // namespace vitral
