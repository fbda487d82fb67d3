// Arguments of the sparse torch operators that the CPU and the CUDA side check alike.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "core/sparse_conv/dense.h"
#include "core/sparse_conv/geometry.h"
#include "core/sparse_conv/voxelize.h"

namespace s4d_torch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

inline void* pointer(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : tensor.data_ptr();
}

inline s4d::sparse::Axes axes(const Ints& values, const char* what) {
  STD_TORCH_CHECK(values.size() == 3, "expected three numbers for ", what, ", got ",
                  values.size());
  return {values[0], values[1], values[2]};
}

inline Tensor int_rows(const Tensor& tensor, const char* what, int64_t columns) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.scalar_type() == ScalarType::Int, "expected ", what,
                  " of two dimensions and int32");
  STD_TORCH_CHECK(columns < 0 || tensor.size(1) == columns, "expected ", what, " with ", columns,
                  " columns, got ", tensor.size(1));
  return torch::stable::contiguous(tensor);
}

inline s4d::sparse::DenseLayout layout_of(const Ints& shape, int64_t batch, const Ints& order,
                                          int64_t channels) {
  const s4d::sparse::DenseLayout layout{s4d::sparse::Grid{batch, axes(shape, "shape")},
                                        axes(order, "order"), channels};
  s4d::sparse::check_grid(layout.grid);
  for (int64_t axis : layout.order) {
    STD_TORCH_CHECK(axis >= 0 && axis <= 2, "expected an axis order of 0, 1 and 2");
  }
  return layout;
}

inline void check_dense(const Tensor& dense, const s4d::sparse::DenseLayout& layout,
                        int64_t batch) {
  bool fits = dense.size(0) == batch;
  for (int place = 0; place < 3; ++place) {
    fits = fits && dense.size(place + 2) == layout.grid.shape[layout.order[place]];
  }
  STD_TORCH_CHECK(fits, "the dense tensor does not have the size of the grid");
}

// `limits`: float32 (3, 3) on the CPU, rows low, high, size, columns x y z.
inline s4d::sparse::VoxelRules voxel_rules(const Tensor& points, const Tensor& limits,
                                           const Ints& grid, int64_t max_points,
                                           int64_t max_voxels) {
  STD_TORCH_CHECK(points.dim() == 2 && points.scalar_type() == ScalarType::Float &&
                      limits.numel() == 9 && limits.scalar_type() == ScalarType::Float &&
                      limits.is_cpu() && limits.is_contiguous(),
                  "expected points (count, channels) and rules (3, 3) of float32");
  s4d::sparse::VoxelRules rules;
  const float* numbers = static_cast<const float*>(limits.data_ptr());
  for (int axis = 0; axis < 3; ++axis) {
    rules.low[axis] = numbers[axis];
    rules.high[axis] = numbers[3 + axis];
    rules.size[axis] = numbers[6 + axis];
  }
  rules.grid = axes(grid, "grid");
  rules.max_points = max_points;
  rules.max_voxels = max_voxels;
  return rules;
}

// Of sparse_scatter_dense. `sizes` are those of the dense tensor.
struct ScatterArguments {
  Tensor features, indices;
  s4d::sparse::DenseLayout layout;
  Ints sizes;

  ScatterArguments(const Tensor& features_in, const Tensor& indices_in, const Ints& shape,
                   int64_t batch, const Ints& order)
      : features(torch::stable::contiguous(features_in)),
        indices(int_rows(indices_in, "indices", 4)) {
    STD_TORCH_CHECK(features.dim() == 2 && features.size(0) == indices.size(0),
                    "expected one feature row per index row");
    layout = layout_of(shape, batch, order, features.size(1));
    sizes = {batch, layout.channels};
    for (int64_t axis : layout.order) sizes.push_back(layout.grid.shape[axis]);
  }
};

// Of sparse_gather_dense.
struct GatherArguments {
  Tensor dense, indices;
  s4d::sparse::DenseLayout layout;

  GatherArguments(const Tensor& dense_in, const Tensor& indices_in, const Ints& shape,
                  int64_t batch, const Ints& order)
      : dense(torch::stable::contiguous(dense_in)), indices(int_rows(indices_in, "indices", 4)) {
    STD_TORCH_CHECK(dense.dim() == 5, "expected a dense tensor of five dimensions");
    layout = layout_of(shape, batch, order, dense.size(1));
    check_dense(dense, layout, batch);
  }
};

// Of sparse_convolution; `depth` channels are read, `columns` written.
struct ConvolutionArguments {
  Tensor features, weight, table;
  int64_t depth, columns;

  ConvolutionArguments(const Tensor& features_in, const Tensor& weight_in, const Tensor& table_in,
                       bool transposed)
      : features(torch::stable::contiguous(features_in)),
        weight(torch::stable::contiguous(weight_in)),
        table(int_rows(table_in, "table", -1)) {
    STD_TORCH_CHECK(features.dim() == 2 && weight.dim() == 3,
                    "expected features (rows, in) and weight (out, volume, in)");
    STD_TORCH_CHECK(features.scalar_type() == weight.scalar_type(),
                    "expected features and weight of one type");
    depth = weight.size(transposed ? 0 : 2);
    columns = weight.size(transposed ? 2 : 0);
    STD_TORCH_CHECK(features.size(1) == depth && table.size(0) == weight.size(1), "expected ",
                    depth, " feature channels and ", weight.size(1), " table rows, got ",
                    features.size(1), " and ", table.size(0));
  }
};

// Of sparse_weight_gradient.
struct GradientArguments {
  Tensor features, grad, table;

  GradientArguments(const Tensor& features_in, const Tensor& grad_in, const Tensor& table_in)
      : features(torch::stable::contiguous(features_in)),
        grad(torch::stable::contiguous(grad_in)),
        table(int_rows(table_in, "table", -1)) {
    STD_TORCH_CHECK(
        features.dim() == 2 && grad.dim() == 2 && grad.size(0) == table.size(1) &&
            features.scalar_type() == grad.scalar_type(),
        "expected features (rows, in) and grad_output (table columns, out) of one type");
  }
};

// Of sparse_convolution_int8: codes, and what one step of the sum is worth per output channel.
struct Int8Arguments {
  Tensor features, weight, scale, table;
  std::optional<Tensor> bias;

  Int8Arguments(const Tensor& features_in, const Tensor& weight_in, const Tensor& scale_in,
                const Tensor& table_in, const std::optional<Tensor>& bias_in)
      : features(torch::stable::contiguous(features_in)),
        weight(torch::stable::contiguous(weight_in)),
        scale(torch::stable::contiguous(scale_in)),
        table(int_rows(table_in, "table", -1)) {
    STD_TORCH_CHECK(features.dim() == 2 && weight.dim() == 3 &&
                        features.scalar_type() == ScalarType::Char &&
                        weight.scalar_type() == ScalarType::Char,
                    "expected int8 features (rows, in) and int8 weights (out, volume, in)");
    STD_TORCH_CHECK(features.size(1) == weight.size(2) && table.size(0) == weight.size(1),
                    "expected ", weight.size(2), " feature channels and ", weight.size(1),
                    " table rows, got ", features.size(1), " and ", table.size(0));
    STD_TORCH_CHECK(scale.dim() == 1 && scale.size(0) == weight.size(0) &&
                        scale.scalar_type() == ScalarType::Float,
                    "expected a float32 scale for each of the ", weight.size(0),
                    " output channels");
    if (bias_in) {
      bias = torch::stable::contiguous(*bias_in);
      STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                          bias->scalar_type() == ScalarType::Float,
                      "expected a float32 bias of ", weight.size(0), " values");
    }
  }
};

}  // namespace s4d_torch
