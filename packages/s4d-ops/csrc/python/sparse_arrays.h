// numpy arrays of the sparse door: types, shapes and memory.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/sparse_conv/convolution.h"

namespace s4d::sparse {

namespace py = pybind11;

using Ints = py::array_t<int32_t, py::array::c_style>;

inline DType type_of(const py::array& array) {
  const char kind = array.dtype().kind();
  const auto size = array.dtype().itemsize();
  if (kind == 'f' && size == 2) return DType::f16;
  if (kind == 'f' && size == 4) return DType::f32;
  if (kind == 'f' && size == 8) return DType::f64;
  if (kind == 'i' && size == 1) return DType::i8;
  throw InvalidSparseInput("expected float16, float32, float64 or int8, got numpy type " +
                           std::string(py::str(static_cast<py::object>(array.dtype()))));
}

inline std::string shape_of(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + ")";
}

inline void expect_shape(const py::array& array, const char* role, std::vector<int64_t> shape) {
  bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i) same = array.shape(i) == shape[i];
  if (!same) {
    std::string text;
    for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
    throw InvalidSparseInput(std::string("expected ") + role + " of shape (" + text + "), got " +
                             shape_of(array));
  }
  if (!(array.flags() & py::array::c_style)) {
    throw InvalidSparseInput(std::string(role) + " must be a contiguous array");
  }
}

inline int64_t rows_of(const py::array& array, const char* role, int64_t columns) {
  if (array.ndim() != 2) {
    throw InvalidSparseInput(std::string("expected ") + role + " of two dimensions, got shape " +
                             shape_of(array));
  }
  expect_shape(array, role, {array.shape(0), columns});
  return array.shape(0);
}

// Hands the vector's memory to numpy without a copy.
template <class T>
py::array_t<T> to_numpy(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owner->data();
  py::capsule free(owner.release(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(std::move(shape), data, free);
}

inline Features features_of(const py::array& array, float range) {
  return Features{array.data(), type_of(array), range};
}

}  // namespace s4d::sparse
