// Feature rows of another type, order or padding; sums of rows; dense maps.
#pragma once

#include "convolution_cuda.h"
#include "site_map_cuda.h"

namespace s4d::sparse::cuda {

// to[i] = from[order ? order[i] : i], converted between f32, f16 and i8 (Features::range is the
// amax of codes). Strides are in elements; channels from `channels` to `to_stride` become zero.
struct ConvertTask {
  Features from;
  int64_t from_stride = 0;
  const int32_t* order = nullptr;
  const int32_t* count = nullptr;
  int64_t capacity = 0;
  int32_t channels = 0;
  Features to;
  int64_t to_stride = 0;
};
cudaError_t convert_rows(const ConvertTask& task, cudaStream_t stream);

// output = activation(q1(a) + q2(b)) on rows, any types; all strides padded_channels(type, channels).
// Without b it activates and converts.
struct AddTask {
  Features a, b;
  float a_range = 0.0f, b_range = 0.0f;  // 0: not rounded
  const int32_t* count = nullptr;
  int64_t capacity = 0;
  int32_t channels = 0;
  Activation activation = Activation::none;
  float slope = 0.01f;
  Features output;
};
cudaError_t add_rows(const AddTask& task, cudaStream_t stream);

// dense is (batch, channels, A, B, C): the grid's axes in the order `axes` (zyx grids: {0, 1, 2},
// xyz grids: {2, 0, 1}). Without `cleared` every element is written once and no memset is needed; with
// it the map is zero already, and what has no site near is left alone.
struct DenseTask {
  SiteMap map;                     // of the rows' sites
  const int32_t* order = nullptr;  // rows are not in the map's order: PlaceTask::order of the map
  int64_t capacity = 0;            // rows
  Features features;               // (capacity, stride), f32, f16 or i8
  int64_t stride = 0;              // elements from row to row, usually padded_channels
  int32_t channels = 0;
  int32_t axes[3] = {0, 1, 2};
  void* dense = nullptr;
  DType dense_type = DType::f16;   // f32 or f16
  bool cleared = false;
  bool overlap = true;             // as ConvolutionTask::overlap
};
cudaError_t scatter_dense(const DenseTask& task, cudaStream_t stream);

// The reverse (and the gradient): rows (capacity, stride) of the type of `dense`, f32 or f16.
// Rows outside the grid (checked before) must not occur.
cudaError_t gather_dense(const void* dense, DType type, const int32_t* indices,
                         const int32_t* count, int64_t capacity, const GridView& grid,
                         const int32_t axes[3], int32_t channels, void* rows, int64_t stride,
                         cudaStream_t stream);

}  // namespace s4d::sparse::cuda
