// Strings of vocabularies, out of the bytes of a stranger's file.
#include <nanobind/stl/tuple.h>

#include <cstring>

#include "areas.h"
#include "arrays.h"

using namespace nb::literals;

namespace vitral {
namespace {

// Reads strings with 64-bit lengths before them until `count` are read, the data end, their bytes are more than `room`,
// or one is not UTF-8. Gives them and where the next one starts; the caller says what is wrong with that one.
nb::tuple read_texts(In<uint8_t, 1> data, int64_t at, int64_t count, int64_t room) {
  const int64_t size = data.shape(0);
  if (at < 0 || at > size) throw nb::value_error("at: outside of the data");
  const uint8_t* bytes = data.data();
  nb::list found;
  while (static_cast<int64_t>(found.size()) < count && size - at >= 8) {
    uint64_t length;
    std::memcpy(&length, bytes + at, 8);
    if (length > static_cast<uint64_t>(size - at - 8) || length > static_cast<uint64_t>(room)) break;
    PyObject* text = PyUnicode_DecodeUTF8(reinterpret_cast<const char*>(bytes + at + 8), static_cast<Py_ssize_t>(length), nullptr);
    if (!text) {
      if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) throw nb::python_error();
      PyErr_Clear();
      break;
    }
    found.append(nb::steal(text));
    at += 8 + static_cast<int64_t>(length);
    room -= static_cast<int64_t>(length);
  }
  return nb::make_tuple(found, at);
}

}  // namespace

void bind_texts(nb::module_& m) { m.def("read_texts", &read_texts, "data"_a, "at"_a, "count"_a, "room"_a); }

}  // namespace vitral
