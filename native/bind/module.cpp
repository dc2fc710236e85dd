#include "areas.h"

NB_MODULE(_core, m) {
  m.doc() = "Vitral's kernels; the typed door is vitral.native.";
  vitral::bind_kernels(m);
  vitral::bind_model(m);
}
