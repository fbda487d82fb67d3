// Torch operators of the sparse convolution core: schemas and CPU implementations. Sizes that
// depend on the data (rulebooks, voxels) are outputs, so these are plain eager operators.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/sparse_conv/convolution.h"
#include "core/sparse_conv/dense.h"
#include "core/sparse_conv/gradient.h"
#include "core/sparse_conv/rulebook.h"
#include "core/sparse_conv/voxelize.h"
#include "sparse_arguments.h"

STABLE_TORCH_LIBRARY_FRAGMENT(s4d, m) {
  m.def(
      "sparse_submanifold_table(Tensor indices, int[] shape, int batch, int[] kernel, "
      "int[] dilation) -> Tensor");
  m.def(
      "sparse_strided_rulebook(Tensor indices, int[] shape, int batch, int[] kernel, "
      "int[] stride, int[] padding, int[] dilation) -> (Tensor, Tensor)");
  m.def("sparse_transpose_table(Tensor table, int in_rows) -> Tensor");
  // weight (out, volume, in); transposed swaps the roles of its channels.
  m.def(
      "sparse_convolution(Tensor features, Tensor weight, Tensor table, Tensor? bias, "
      "bool transposed) -> Tensor");
  // int8 codes; the result is sum * scale + bias in float32, scale per output channel.
  m.def(
      "sparse_convolution_int8(Tensor features, Tensor weight, Tensor scale, Tensor table, "
      "Tensor? bias) -> Tensor");
  m.def("sparse_weight_gradient(Tensor features, Tensor grad_output, Tensor table) -> Tensor");
  m.def(
      "sparse_scatter_dense(Tensor features, Tensor indices, int[] shape, int batch, "
      "int[] order) -> Tensor");
  m.def(
      "sparse_gather_dense(Tensor dense, Tensor indices, int[] shape, int batch, "
      "int[] order) -> Tensor");
  // rules: float32 (3, 3), rows low, high, size, columns x y z.
  m.def(
      "sparse_voxelize(Tensor points, Tensor rules, int[] grid, int max_points, int max_voxels)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

namespace {

using namespace s4d::sparse;
using namespace s4d_torch;
using s4d::DType;

int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

DType float_type(const Tensor& tensor, const char* what) {
  if (tensor.scalar_type() == ScalarType::Float) return DType::f32;
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, "expected ", what,
                  " of float32 or float64");
  return DType::f64;
}

template <class T>
Tensor to_tensor(const std::vector<T>& values, const Tensor& like, const Ints& sizes,
                 ScalarType type) {
  Tensor tensor = torch::stable::new_empty(like, sizes, type);
  if (!values.empty()) std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(T));
  return tensor;
}

Tensor submanifold_table(const Tensor& indices_in, const Ints& shape, int64_t batch,
                         const Ints& kernel, const Ints& dilation) {
  const Tensor indices = int_rows(indices_in, "indices", 4);
  Geometry geometry;
  geometry.kernel = axes(kernel, "kernel");
  geometry.dilation = axes(dilation, "dilation");
  const Rulebook book =
      submanifold_rulebook(static_cast<const int32_t*>(pointer(indices)), indices.size(0),
                           Grid{batch, axes(shape, "shape")}, geometry, threads());
  return to_tensor(book.table, indices, {book.volume, book.out_rows}, ScalarType::Int);
}

std::tuple<Tensor, Tensor> strided(const Tensor& indices_in, const Ints& shape, int64_t batch,
                                   const Ints& kernel, const Ints& stride, const Ints& padding,
                                   const Ints& dilation) {
  const Tensor indices = int_rows(indices_in, "indices", 4);
  const Geometry geometry{axes(kernel, "kernel"), axes(stride, "stride"),
                          axes(padding, "padding"), axes(dilation, "dilation")};
  const Rulebook book =
      strided_rulebook(static_cast<const int32_t*>(pointer(indices)), indices.size(0),
                       Grid{batch, axes(shape, "shape")}, geometry, threads());
  return {to_tensor(book.out_indices, indices, {book.out_rows, 4}, ScalarType::Int),
          to_tensor(book.table, indices, {book.volume, book.out_rows}, ScalarType::Int)};
}

Tensor transpose(const Tensor& table_in, int64_t in_rows) {
  const Tensor table = int_rows(table_in, "table", -1);
  STD_TORCH_CHECK(in_rows >= 0, "expected in_rows >= 0, got ", in_rows);
  const std::vector<int32_t> result =
      transpose_table(static_cast<const int32_t*>(pointer(table)), table.size(0), table.size(1),
                      in_rows, threads());
  return to_tensor(result, table, {table.size(0), in_rows}, ScalarType::Int);
}

Tensor convolution(const Tensor& features_in, const Tensor& weight_in, const Tensor& table_in,
                   const std::optional<Tensor>& bias_in, bool transposed) {
  const ConvolutionArguments in(features_in, weight_in, table_in, transposed);
  const DType type = float_type(in.features, "features");
  const PackedWeights packed(pointer(in.weight), type, in.weight.size(1), in.weight.size(2),
                             in.weight.size(0), nullptr, transposed);
  std::optional<Tensor> bias;
  if (bias_in) {
    bias = torch::stable::contiguous(*bias_in);
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == in.columns &&
                        bias->scalar_type() == in.features.scalar_type(),
                    "expected a bias of ", in.columns, " values in the type of features");
  }
  Tensor output = torch::stable::new_empty(in.features, {in.table.size(1), in.columns});
  Convolution task;
  task.weights = &packed;
  task.table = static_cast<const int32_t*>(pointer(in.table));
  task.out_rows = in.table.size(1);
  task.input = Features{pointer(in.features), type};
  task.bias = bias ? pointer(*bias) : nullptr;
  task.output = Features{pointer(output), type};
  task.threads = threads();
  check_table(task.table, in.table.size(0), in.table.size(1), in.features.size(0));
  convolve(task);
  return output;
}

Tensor convolution_int8(const Tensor& features_in, const Tensor& weight_in,
                        const Tensor& scale_in, const Tensor& table_in,
                        const std::optional<Tensor>& bias_in) {
  const Int8Arguments in(features_in, weight_in, scale_in, table_in, bias_in);
  const float* scale = static_cast<const float*>(in.scale.data_ptr());
  // In the core's terms: an input range of 127 makes its codes values, and channels carry the rest.
  std::vector<float> ranges;
  for (int64_t o = 0; o < in.scale.size(0); ++o) ranges.push_back(scale[o] * 127.0f);
  const PackedWeights packed(pointer(in.weight), DType::i8, in.weight.size(1), in.weight.size(2),
                             in.weight.size(0), ranges.data());
  Tensor output = torch::stable::new_empty(in.features, {in.table.size(1), packed.columns()},
                                           ScalarType::Float);
  Convolution task;
  task.weights = &packed;
  task.table = static_cast<const int32_t*>(pointer(in.table));
  task.out_rows = in.table.size(1);
  task.input = Features{pointer(in.features), DType::i8, 127.0f};
  task.bias = in.bias ? pointer(*in.bias) : nullptr;
  task.output = Features{pointer(output), DType::f32};
  task.threads = threads();
  check_table(task.table, in.table.size(0), in.table.size(1), in.features.size(0));
  convolve(task);
  return output;
}

Tensor weight_gradient_of(const Tensor& features_in, const Tensor& grad_in,
                          const Tensor& table_in) {
  const GradientArguments in(features_in, grad_in, table_in);
  WeightGradient task;
  task.type = float_type(in.features, "features");
  task.volume = in.table.size(0);
  task.out_rows = in.table.size(1);
  task.in_channels = in.features.size(1);
  task.out_channels = in.grad.size(1);
  task.table = static_cast<const int32_t*>(pointer(in.table));
  check_table(task.table, task.volume, task.out_rows, in.features.size(0));
  Tensor result = torch::stable::new_empty(
      in.features, {task.out_channels, task.volume, task.in_channels});
  task.features = pointer(in.features);
  task.grad_output = pointer(in.grad);
  task.grad_weight = pointer(result);
  task.threads = threads();
  weight_gradient(task);
  return result;
}

Tensor scatter(const Tensor& features_in, const Tensor& indices_in, const Ints& shape,
               int64_t batch, const Ints& order) {
  const ScatterArguments in(features_in, indices_in, shape, batch, order);
  Tensor dense = torch::stable::new_empty(in.features, in.sizes);
  scatter_dense(pointer(in.features), static_cast<const int32_t*>(pointer(in.indices)),
                in.indices.size(0), in.layout, static_cast<int64_t>(in.features.element_size()),
                pointer(dense), threads());
  return dense;
}

Tensor gather(const Tensor& dense_in, const Tensor& indices_in, const Ints& shape, int64_t batch,
              const Ints& order) {
  const GatherArguments in(dense_in, indices_in, shape, batch, order);
  Tensor features =
      torch::stable::new_empty(in.dense, {in.indices.size(0), in.layout.channels});
  gather_dense(pointer(in.dense), static_cast<const int32_t*>(pointer(in.indices)),
               in.indices.size(0), in.layout, static_cast<int64_t>(in.dense.element_size()),
               pointer(features), threads());
  return features;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> voxelization(const Tensor& points_in,
                                                                const Tensor& rules_in,
                                                                const Ints& grid,
                                                                int64_t max_points,
                                                                int64_t max_voxels) {
  const Tensor points = torch::stable::contiguous(points_in);
  const VoxelRules rules = voxel_rules(points, rules_in, grid, max_points, max_voxels);
  const Voxels voxels = voxelize(static_cast<const float*>(pointer(points)), points.size(0),
                                 points.size(1), rules);
  const int64_t count = static_cast<int64_t>(voxels.kept.size());
  const std::vector<int64_t> lost{voxels.refused_voxels, voxels.refused_points,
                                  voxels.outside_points};
  return {to_tensor(voxels.cells, points, {count, 3}, ScalarType::Int),
          to_tensor(voxels.means, points, {count, points.size(1)}, ScalarType::Float),
          to_tensor(voxels.kept, points, {count}, ScalarType::Int),
          to_tensor(voxels.total, points, {count}, ScalarType::Int),
          to_tensor(lost, points, {3}, ScalarType::Long)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s4d, CPU, m) {
  m.impl("sparse_submanifold_table", TORCH_BOX(&submanifold_table));
  m.impl("sparse_strided_rulebook", TORCH_BOX(&strided));
  m.impl("sparse_transpose_table", TORCH_BOX(&transpose));
  m.impl("sparse_convolution", TORCH_BOX(&convolution));
  m.impl("sparse_convolution_int8", TORCH_BOX(&convolution_int8));
  m.impl("sparse_weight_gradient", TORCH_BOX(&weight_gradient_of));
  m.impl("sparse_scatter_dense", TORCH_BOX(&scatter));
  m.impl("sparse_gather_dense", TORCH_BOX(&gather));
  m.impl("sparse_voxelize", TORCH_BOX(&voxelization));
}
