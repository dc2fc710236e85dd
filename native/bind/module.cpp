#include "areas.h"

NB_MODULE(_core, m) {
  nanobind::set_leak_warnings(false);  // a model that lives until the interpreter ends is no fault
  m.doc() = "Vitral's kernels; the typed door is vitral.native.";
  vitral::bind_kernels(m);
  vitral::bind_model(m);
  vitral::bind_texts(m);
}
