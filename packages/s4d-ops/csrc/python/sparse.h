// The sparse convolution part of the native module.
#pragma once

#include <pybind11/pybind11.h>

namespace s4d::sparse {

void bind(pybind11::module_& module);

}  // namespace s4d::sparse
