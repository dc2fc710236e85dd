// What each file of bind/ adds to the module.
#pragma once
#include <nanobind/nanobind.h>

namespace vitral {
void bind_kernels(nanobind::module_& m);  // kernels.cpp
void bind_model(nanobind::module_& m);    // model.cpp
void bind_texts(nanobind::module_& m);    // texts.cpp
}  // namespace vitral
