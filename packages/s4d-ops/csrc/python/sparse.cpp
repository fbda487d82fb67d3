// numpy door of the sparse convolution core: checks, allocates, calls.
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../core/sparse_conv/convolution.h"
#include "../core/sparse_conv/dense.h"
#include "../core/sparse_conv/gradient.h"
#include "../core/sparse_conv/rulebook.h"
#include "../core/sparse_conv/voxelize.h"
#include "sparse_arrays.h"

namespace py = pybind11;

namespace s4d::sparse {
namespace {

py::array submanifold(const Ints& indices, const Axes& shape, int64_t batch, const Axes& kernel,
                      const Axes& dilation, int threads) {
  const int64_t count = rows_of(indices, "indices", 4);
  Geometry geometry{kernel, {1, 1, 1}, {0, 0, 0}, dilation};
  Rulebook book;
  {
    py::gil_scoped_release release;
    book = submanifold_rulebook(indices.data(), count, Grid{batch, shape}, geometry, threads);
  }
  return to_numpy(std::move(book.table), {book.volume, book.out_rows});
}

py::tuple strided(const Ints& indices, const Axes& shape, int64_t batch, const Axes& kernel,
                  const Axes& stride, const Axes& padding, const Axes& dilation, int threads) {
  const int64_t count = rows_of(indices, "indices", 4);
  Geometry geometry{kernel, stride, padding, dilation};
  Rulebook book;
  {
    py::gil_scoped_release release;
    book = strided_rulebook(indices.data(), count, Grid{batch, shape}, geometry, threads);
  }
  return py::make_tuple(to_numpy(std::move(book.out_indices), {book.out_rows, 4}),
                        book.out_grid.shape,
                        to_numpy(std::move(book.table), {book.volume, book.out_rows}));
}

py::array transpose(const Ints& table, int64_t in_rows, int threads) {
  if (table.ndim() != 2 || in_rows < 0) {
    throw InvalidSparseInput("expected a rulebook table of two dimensions, got " +
                             shape_of(table));
  }
  const int64_t volume = table.shape(0);
  std::vector<int32_t> result;
  {
    py::gil_scoped_release release;
    result = transpose_table(table.data(), volume, table.shape(1), in_rows, threads);
  }
  return to_numpy(std::move(result), {volume, in_rows});
}

std::unique_ptr<PackedWeights> pack(const py::array& weight, const std::vector<float>& ranges,
                                    bool transposed) {
  if (weight.ndim() != 3) {
    throw InvalidSparseInput("expected weights (out, volume, in), got shape " + shape_of(weight));
  }
  expect_shape(weight, "weights", {weight.shape(0), weight.shape(1), weight.shape(2)});
  if (!ranges.empty() && static_cast<py::ssize_t>(ranges.size()) != weight.shape(0)) {
    throw InvalidSparseInput("expected one weight range per output channel (" +
                             std::to_string(weight.shape(0)) + "), got " +
                             std::to_string(ranges.size()));
  }
  return std::make_unique<PackedWeights>(weight.data(), type_of(weight), weight.shape(1),
                                         weight.shape(2), weight.shape(0),
                                         ranges.empty() ? nullptr : ranges.data(), transposed);
}

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "sigmoid") return Activation::sigmoid;
  throw InvalidSparseInput("expected activation none, relu, leaky_relu or sigmoid, got " + name);
}

void convolution(const PackedWeights& weights, const Ints& table, const py::array& features,
                 float range, const std::optional<py::array>& bias, const std::string& activation,
                 float slope, const std::optional<py::array>& residual, float residual_range,
                 std::pair<float, float> add_ranges, py::array output, float output_range,
                 int threads) {
  const int64_t in_rows = rows_of(features, "features", weights.depth());
  if (table.ndim() != 2) throw InvalidSparseInput("expected a table (volume, rows)");
  const int64_t out_rows = table.shape(1);
  expect_shape(table, "the rulebook table", {weights.volume(), out_rows});
  expect_shape(output, "output", {out_rows, weights.columns()});
  Convolution task;
  task.weights = &weights;
  task.table = table.data();
  task.out_rows = out_rows;
  task.input = features_of(features, range);
  if (bias) {
    expect_shape(*bias, "bias", {weights.columns()});
    if (type_of(*bias) != (weights.type() == DType::f64 ? DType::f64 : DType::f32)) {
      throw InvalidSparseInput("expected a bias of float32 (float64 with float64 weights)");
    }
    task.bias = bias->data();
  }
  task.activation = activation_of(activation);
  task.slope = slope;
  if (residual) {
    expect_shape(*residual, "residual", {out_rows, weights.columns()});
    task.residual = features_of(*residual, residual_range);
    task.sum_range = add_ranges.first;
    task.residual_range = add_ranges.second;
  }
  task.output = Features{output.mutable_data(), type_of(output), output_range};
  task.threads = threads;
  py::gil_scoped_release release;
  check_table(task.table, weights.volume(), out_rows, in_rows);
  convolve(task);
}

void add(const py::array& a, float a_range, const std::optional<py::array>& b, float b_range,
         std::pair<float, float> add_ranges, const std::string& activation, float slope,
         py::array output, float output_range, int threads) {
  const std::vector<int64_t> shape(a.shape(), a.shape() + a.ndim());
  expect_shape(a, "features", shape);
  expect_shape(output, "output", shape);
  Features other;
  if (b) {
    expect_shape(*b, "the second operand", shape);
    other = features_of(*b, b_range);
  }
  const Features first = features_of(a, a_range);
  const Features to{output.mutable_data(), type_of(output), output_range};
  const Activation act = activation_of(activation);
  const int64_t count = a.size();
  py::gil_scoped_release release;
  add_features(first, add_ranges.first, other, add_ranges.second, count, act, slope, to, threads);
}

py::array scatter(const py::array& features, const Ints& indices, const Axes& shape, int64_t batch,
                  const Axes& order, int threads) {
  const int64_t count = rows_of(indices, "indices", 4);
  if (features.ndim() != 2) throw InvalidSparseInput("expected features (rows, channels)");
  const int64_t channels = features.shape(1);
  expect_shape(features, "features", {count, channels});
  const DenseLayout layout{Grid{batch, shape}, order, channels};
  check_grid(layout.grid);
  std::vector<py::ssize_t> sizes{batch, channels};
  for (int64_t axis : order) {
    if (axis < 0 || axis > 2) throw InvalidSparseInput("expected axis numbers 0, 1 and 2");
    sizes.push_back(shape[static_cast<size_t>(axis)]);
  }
  py::array dense(features.dtype(), sizes);
  void* to = dense.mutable_data();
  const auto element = features.dtype().itemsize();
  {
    py::gil_scoped_release release;
    scatter_dense(features.data(), indices.data(), count, layout, element, to, threads);
  }
  return dense;
}

py::array weight_gradient_of(const Ints& table, const py::array& features,
                             const py::array& grad_output, int threads) {
  if (table.ndim() != 2 || features.ndim() != 2 || grad_output.ndim() != 2) {
    throw InvalidSparseInput("expected table, features and grad_output of two dimensions");
  }
  WeightGradient task;
  task.type = type_of(features);
  task.volume = table.shape(0);
  task.out_rows = table.shape(1);
  task.in_channels = features.shape(1);
  task.out_channels = grad_output.shape(1);
  expect_shape(table, "table", {task.volume, task.out_rows});
  expect_shape(features, "features", {features.shape(0), task.in_channels});
  expect_shape(grad_output, "grad_output", {task.out_rows, task.out_channels});
  if (type_of(grad_output) != task.type) {
    throw InvalidSparseInput("expected features and grad_output of one type");
  }
  py::array grad(features.dtype(), std::vector<py::ssize_t>{task.out_channels, task.volume,
                                                           task.in_channels});
  task.table = table.data();
  task.features = features.data();
  task.grad_output = grad_output.data();
  task.grad_weight = grad.mutable_data();
  task.threads = threads;
  const int64_t in_rows = features.shape(0);
  {
    py::gil_scoped_release release;
    check_table(task.table, task.volume, task.out_rows, in_rows);
    weight_gradient(task);
  }
  return grad;
}

py::tuple voxelization(const py::array_t<float, py::array::c_style>& points,
                       const std::array<float, 3>& low, const std::array<float, 3>& high,
                       const std::array<float, 3>& size, const Axes& grid, int64_t max_points,
                       int64_t max_voxels) {
  if (points.ndim() != 2) throw InvalidSparseInput("expected points (count, channels)");
  VoxelRules rules;
  for (size_t axis = 0; axis < 3; ++axis) {
    rules.low[axis] = low[axis];
    rules.high[axis] = high[axis];
    rules.size[axis] = size[axis];
  }
  rules.grid = grid;
  rules.max_points = max_points;
  rules.max_voxels = max_voxels;
  const int64_t channels = points.shape(1);
  Voxels voxels;
  {
    py::gil_scoped_release release;
    voxels = voxelize(points.data(), points.shape(0), channels, rules);
  }
  const py::ssize_t count = static_cast<py::ssize_t>(voxels.kept.size());
  return py::make_tuple(to_numpy(std::move(voxels.cells), {count, 3}),
                        to_numpy(std::move(voxels.means), {count, channels}),
                        to_numpy(std::move(voxels.kept), {count}),
                        to_numpy(std::move(voxels.total), {count}), voxels.refused_voxels,
                        voxels.refused_points, voxels.outside_points);
}

}  // namespace
}  // namespace s4d::sparse

void bind_sparse(py::module_& module) {
  using namespace s4d::sparse;
  // std::invalid_argument arrives in Python as ValueError; the Python side gives it its name.
  py::class_<PackedWeights>(module, "SparseWeights")
      .def(py::init(&pack))
      .def_property_readonly("bytes", &PackedWeights::bytes)
      .def_property_readonly("volume", &PackedWeights::volume)
      .def_property_readonly("in_channels", &PackedWeights::depth)
      .def_property_readonly("out_channels", &PackedWeights::columns);
  module.def("sparse_kernels", [] { return std::string(cpu_kernels().name); });
  module.def("sparse_submanifold_table", &submanifold);
  module.def("sparse_strided_rulebook", &strided);
  module.def("sparse_transpose_table", &transpose);
  module.def("sparse_convolution", &convolution);
  module.def("sparse_add", &add);
  module.def("sparse_scatter_dense", &scatter);
  module.def("sparse_weight_gradient", &weight_gradient_of);
  module.def("sparse_voxelize", &voxelization);
}
