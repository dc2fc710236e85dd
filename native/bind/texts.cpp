// Strings of vocabularies, out of the bytes of a stranger's file, and what merges make of them.
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>

#include "areas.h"
#include "arrays.h"

using namespace nb::literals;

namespace vitral {
namespace {

// Strict UTF-8, as Python has it: shortest forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view text) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* end = p + text.size();
  while (p < end) {
    const uint8_t first = *p++;
    if (first < 0x80) continue;
    const int more = first >= 0xC2 && first < 0xE0 ? 1 : (first & 0xF0) == 0xE0 ? 2 : first >= 0xF0 && first < 0xF5 ? 3 : 0;
    if (!more || end - p < more) return false;
    const uint8_t least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80, most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (p[0] < least || p[0] > most) return false;
    for (int i = 1; i < more; ++i)
      if ((p[i] & 0xC0) != 0x80) return false;
    p += more;
  }
  return true;
}

nb::object str(std::string_view text) {
  return nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr));
}

// Strings one after the other, each UTF-8: a copy, because a mapped file may be cut short while we live.
class Texts {
 public:
  // Reads strings with 64-bit lengths before them from `*at` on, until there are `count`, the data end, their bytes are
  // more than `room`, or one is not UTF-8; `*at` is then where the next one starts.
  Texts(const In<uint8_t, 1>& data, int64_t* at, int64_t count, int64_t room) {
    const int64_t size = data.shape(0);
    if (*at < 0 || *at > size) throw nb::value_error("at: outside of the data");
    while (this->size() < count && size - *at >= 8) {
      const auto* here = reinterpret_cast<const char*>(data.data()) + *at;
      uint64_t length;
      std::memcpy(&length, here, 8);
      if (length > static_cast<uint64_t>(size - *at - 8) || length > static_cast<uint64_t>(room)) break;
      const std::string_view text(here + 8, length);
      if (!is_utf8(text)) break;
      bytes_ += text;
      ends_.push_back(static_cast<int64_t>(bytes_.size()));
      *at += 8 + static_cast<int64_t>(length);
      room -= static_cast<int64_t>(length);
      longest_ = std::max(longest_, static_cast<int64_t>(length));
    }
  }

  int64_t size() const { return static_cast<int64_t>(ends_.size()); }
  int64_t longest() const { return longest_; }
  std::string_view operator[](int64_t i) const {
    const int64_t start = i ? ends_[i - 1] : 0;
    return {bytes_.data() + start, static_cast<size_t>(ends_[i] - start)};
  }
  nb::list list() const {
    nb::list found;
    for (int64_t i = 0; i < size(); ++i) found.append(str((*this)[i]));
    return found;
  }

 private:
  std::string bytes_;
  std::vector<int64_t> ends_;
  int64_t longest_ = 0;
};

nb::tuple read_texts(In<uint8_t, 1> data, int64_t at, int64_t count, int64_t room) {
  Texts found(data, &at, count, room);
  return nb::make_tuple(std::move(found), at);
}

nb::object text_at(const Texts& texts, int64_t i) {
  if (i < 0) i += texts.size();
  if (i < 0 || i >= texts.size()) throw nb::index_error("no text is there");
  return str(texts[i]);
}

bool same_texts(const Texts& a, const Texts& b) {
  for (int64_t i = 0; i < a.size() && a.size() == b.size(); ++i)
    if (a[i] != b[i]) return false;
  return a.size() == b.size();
}

// Ids of strings, by hash and linear search from there.
class Index {
 public:
  explicit Index(const Texts& texts) : texts_(texts) {
    size_t size = 16;
    while (size < 2 * static_cast<size_t>(texts.size())) size *= 2;
    slots_.assign(size, -1);
    for (int64_t id = 0; id < texts.size(); ++id) {
      int32_t& slot = slots_[place(texts[id])];
      if (slot < 0) slot = static_cast<int32_t>(id);
      else if (twice_ < 0) twice_ = slot;
    }
  }
  int32_t find(std::string_view text) const { return slots_[place(text)]; }
  int64_t twice() const { return twice_; }  // the first that stands there twice, or -1

 private:
  size_t place(std::string_view text) const {
    uint64_t hash = 0xCBF29CE484222325;  // FNV-1a, and a last mixing for its low bits
    for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3;
    size_t at = (hash ^ hash >> 29) & (slots_.size() - 1);
    while (slots_[at] >= 0 && texts_[slots_[at]] != text) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  const Texts& texts_;
  std::vector<int32_t> slots_;
  int64_t twice_ = -1;
};

// A vocabulary of pieces, and merges of two of them to a third, first ones first.
class Merges {
 public:
  Merges(const Texts& pieces, const Texts& merges) : pieces_(pieces), index_(pieces) {
    std::string both;
    for (int64_t i = 0; i < merges.size(); ++i) {
      const std::string_view merge = merges[i];
      const size_t space = merge.find(' ');
      if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
        odd_ = i;
        return;
      }
      const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
      both.assign(left).append(right);
      const Merge found{index_.find(left), index_.find(right), index_.find(both)};
      if (found.left < 0 || found.right < 0 || found.to < 0) {
        unknown_ = found.left < 0 ? std::string(left) : found.right < 0 ? std::string(right) : both;
        return;
      }
      merges_.push_back(found);
    }
  }

  int64_t twice() const { return index_.twice(); }
  int64_t odd() const { return odd_; }
  nb::object unknown() const { return unknown_ ? str(*unknown_) : nb::none(); }

  // The pieces that are parts of a text, by id, and the merges among them, which are all that merging it comes by.
  nb::tuple within(std::string_view text) const {
    std::vector<bool> kept(pieces_.size());
    nb::dict vocab;
    for (size_t from = 0; from < text.size(); ++from) {
      if ((text[from] & 0xC0) == 0x80) continue;  // inside of a character
      const size_t most = std::min(text.size() - from, static_cast<size_t>(pieces_.longest()));
      for (size_t n = 1; n <= most; ++n) {
        const int32_t id = index_.find(text.substr(from, n));
        if (id < 0 || kept[id]) continue;
        kept[id] = true;
        vocab[str(pieces_[id])] = id;
      }
    }
    nb::list pairs;
    for (const Merge& m : merges_)
      if (kept[m.to] && kept[m.left] && kept[m.right]) pairs.append(nb::make_tuple(str(pieces_[m.left]), str(pieces_[m.right])));
    return nb::make_tuple(vocab, pairs);
  }

 private:
  struct Merge { int32_t left, right, to; };
  const Texts& pieces_;
  Index index_;
  std::vector<Merge> merges_;
  int64_t odd_ = -1;
  std::optional<std::string> unknown_;
};

}  // namespace

void bind_texts(nb::module_& m) {
  m.def("read_texts", &read_texts, "data"_a, "at"_a, "count"_a, "room"_a);
  nb::class_<Texts>(m, "Texts")
      .def("__len__", &Texts::size)
      .def("__getitem__", &text_at, "index"_a)
      .def("__iter__", [](const Texts& t) { return nb::iter(t.list()); })
      .def("__eq__", &same_texts, nb::is_operator())
      .def("__eq__", [](const Texts& t, const nb::list& other) { return t.list().equal(other); }, nb::is_operator())
      .def("tolist", &Texts::list)
      .def_prop_ro("longest", &Texts::longest);
  nb::class_<Merges>(m, "Merges")
      .def(nb::init<const Texts&, const Texts&>(), "pieces"_a, "merges"_a, nb::keep_alive<1, 2>())
      .def_prop_ro("twice", &Merges::twice)
      .def_prop_ro("odd", &Merges::odd)
      .def_prop_ro("unknown", &Merges::unknown)
      .def("within", &Merges::within, "text"_a);
}

}  // namespace vitral
