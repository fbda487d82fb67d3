// What the CUDA sides of the sparse torch operators share: the call's device and stream, memory from
// torch's allocator (reused only after this stream's kernels), errors that the data show, sites.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "core/sparse_conv/rulebook.h"
#include "core/sparse_conv/sparse_cuda.h"
#include "core/sparse_input/input_cuda.h"
#include "current_stream_cuda.h"
#include "sparse_arguments.h"

namespace s4d_torch {

using s4d::DType;
using s4d::sparse::Axes;
using s4d::sparse::Geometry;
using s4d::sparse::Grid;
using namespace s4d::sparse::cuda;

inline void require(cudaError_t code, const char* where) {
  STD_TORCH_CHECK(code == cudaSuccess, where, ": ", cudaGetErrorName(code), ", ",
                  cudaGetErrorString(code));
}

inline int32_t* ints(const Tensor& tensor) { return static_cast<int32_t*>(pointer(tensor)); }

// One call's device, stream, and the words that the core counts errors in.
class Call {
 public:
  explicit Call(const Tensor& like)
      : guard_(like.get_device_index()),
        like_(like),
        stream_(static_cast<cudaStream_t>(current_stream(like.get_device_index()))),
        errors_(torch::stable::new_zeros(like, {kErrorSlots}, ScalarType::Int)) {}

  cudaStream_t stream() const { return stream_; }
  int32_t* errors() const { return ints(errors_); }
  Tensor empty(const Ints& sizes, ScalarType type) const {
    return torch::stable::new_empty(like_, sizes, type);
  }
  Tensor bytes(int64_t size) const { return empty({size}, ScalarType::Byte); }
  Tensor number(int64_t value) const {
    const Tensor cell = empty({1}, ScalarType::Int);
    require(store_int(ints(cell), static_cast<int32_t>(value), stream_), "store");
    return cell;
  }
  std::vector<int32_t> read(const Tensor& tensor) const {
    std::vector<int32_t> values(static_cast<size_t>(tensor.numel()));
    require(cudaMemcpyAsync(values.data(), tensor.data_ptr(), values.size() * sizeof(int32_t),
                            cudaMemcpyDeviceToHost, stream_),
            "read");
    require(cudaStreamSynchronize(stream_), "read");
    return values;
  }
  // Throws what the data showed to be wrong; returns the number of lost rows.
  int32_t check() const {
    const std::vector<int32_t> found = read(errors_);
    STD_TORCH_CHECK(found[kRowsOutside] == 0, found[kRowsOutside],
                    " index rows lie outside the grid");
    STD_TORCH_CHECK(found[kRowsTwice] == 0, found[kRowsTwice],
                    " index rows repeat an earlier one: both stand for the same cell");
    STD_TORCH_CHECK(found[kEntriesOutside] == 0 && found[kEntriesTwice] == 0,
                    "the rulebook entries do not belong together: ", found[kEntriesOutside],
                    " beyond the rows, ", found[kEntriesTwice], " readers too many");
    return found[kRowsLost];
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Tensor like_;
  cudaStream_t stream_;
  Tensor errors_;
};

inline int32_t small(int64_t value, const char* what) {
  STD_TORCH_CHECK(value >= 0 && value <= INT32_MAX, "expected ", what, " below 2^31, got ", value);
  return static_cast<int32_t>(value);
}

inline GridView view_of(const Grid& grid) {
  s4d::sparse::check_grid(grid);
  return GridView{small(grid.batch, "a batch"), small(grid.shape[0], "grid sizes"),
                  small(grid.shape[1], "grid sizes"), small(grid.shape[2], "grid sizes")};
}

inline GeometryView view_of(const Geometry& geometry) {
  s4d::sparse::check_geometry(geometry);
  GeometryView view;
  for (size_t axis = 0; axis < 3; ++axis) {
    view.kernel[axis] = small(geometry.kernel[axis], "kernel sizes");
    view.stride[axis] = small(geometry.stride[axis], "strides");
    view.padding[axis] = small(geometry.padding[axis], "padding");
    view.dilation[axis] = small(geometry.dilation[axis], "dilation");
  }
  STD_TORCH_CHECK(geometry.volume() <= 1024, "expected at most 1024 kernel offsets, got ",
                  geometry.volume());
  return view;
}

// The sites of index rows: a map, the sorted rows, and order[rank] = given row.
struct Sites {
  Tensor memory, count, sorted, order, given;
  SiteMap map;

  Sites(const Call& call, const Tensor& indices, const Grid& grid) {
    const int64_t rows = indices.size(0);
    map.grid = view_of(grid);
    const int64_t bytes = site_map_bytes(map.grid);
    STD_TORCH_CHECK(bytes > 0, "the grid has more than 2^37 cells");
    memory = call.bytes(bytes);
    count = call.number(0);
    sorted = call.empty({rows, 4}, ScalarType::Int);
    order = call.empty({rows}, ScalarType::Int);
    given = call.number(small(rows, "the number of rows"));
    map.memory = memory.data_ptr();
    map.count = ints(count);
    const SiteLevel level{map, GeometryView{}, ints(sorted), rows};
    require(build_sites(ints(indices), ints(given), rows, &level, 1, false, call.errors(),
                        call.stream()),
            "build_sites");
    PlaceTask place;
    place.indices = ints(indices);
    place.count = ints(given);
    place.capacity = rows;
    place.map = map;
    place.order = ints(order);
    if (rows > 0) require(place_rows(place, call.stream()), "place_rows");
  }
};

inline DType half_or_float(const Tensor& tensor, const char* what) {
  if (tensor.scalar_type() == ScalarType::Half) return DType::f16;
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, "expected ", what,
                  " of float32 or float16 on CUDA");
  return DType::f32;
}

}  // namespace s4d_torch
