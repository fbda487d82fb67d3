// What Python gives for the arguments of the core, as pybind11 makes it of numbers, strings and tuples,
// and the structs of the core made of it.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>

#include "core/sparse_conv/geometry.h"
#include "core/sparse_conv/sparse_cuda.h"

namespace s4d::sparse::cuda {

using Address = uintptr_t;
using GridNumbers = std::array<int32_t, 4>;                  // batch and the three axes
using GeometryNumbers = std::array<std::array<int32_t, 3>, 4>;  // kernel stride padding dilation
using FeatureNumbers = std::tuple<Address, std::string, float>;  // memory, type, range
using MapNumbers = std::tuple<GridNumbers, Address, Address>;    // grid, memory, count
using LimitNumbers = std::array<std::array<float, 3>, 3>;  // of VoxelRules
// map, geometry, indices, capacity
using LevelNumbers = std::tuple<MapNumbers, GeometryNumbers, Address, int64_t>;
// out indices, out count, capacity, map, in order, geometry, table
using TableNumbers =
    std::tuple<Address, Address, int64_t, MapNumbers, Address, GeometryNumbers, Address>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline int32_t* ints(Address address) { return at<int32_t>(address); }

inline cudaStream_t stream_of(Address address) { return reinterpret_cast<cudaStream_t>(address); }

inline DType type_of(const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "float16") return DType::f16;
  if (name == "int8") return DType::i8;
  throw InvalidSparseInput("expected float32, float16 or int8, got " + name);
}

inline Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "sigmoid") return Activation::sigmoid;
  throw InvalidSparseInput("expected activation none, relu, leaky_relu or sigmoid, got " + name);
}

inline GridView grid_of(const GridNumbers& n) { return GridView{n[0], n[1], n[2], n[3]}; }

inline GeometryView geometry_of(const GeometryNumbers& n) {
  GeometryView view;
  for (size_t axis = 0; axis < 3; ++axis) {
    view.kernel[axis] = n[0][axis];
    view.stride[axis] = n[1][axis];
    view.padding[axis] = n[2][axis];
    view.dilation[axis] = n[3][axis];
  }
  return view;
}

inline SiteMap map_of(const MapNumbers& n) {
  return SiteMap{grid_of(std::get<0>(n)), at(std::get<1>(n)), ints(std::get<2>(n))};
}

inline Features features_of(const FeatureNumbers& n) {
  return Features{at(std::get<0>(n)), type_of(std::get<1>(n)), std::get<2>(n)};
}

inline SiteLevel level_of(const LevelNumbers& n) {
  return SiteLevel{map_of(std::get<0>(n)), geometry_of(std::get<1>(n)), ints(std::get<2>(n)),
                   std::get<3>(n)};
}

// low, high and size, each x y z.
inline VoxelRules rules_of(const LimitNumbers& limits, const Axes& grid, int64_t max_points,
                           int64_t max_voxels) {
  VoxelRules rules;
  for (size_t axis = 0; axis < 3; ++axis) {
    rules.low[axis] = limits[0][axis];
    rules.high[axis] = limits[1][axis];
    rules.size[axis] = limits[2][axis];
  }
  rules.grid = grid;
  rules.max_points = max_points;
  rules.max_voxels = max_voxels;
  return rules;
}

}  // namespace s4d::sparse::cuda
