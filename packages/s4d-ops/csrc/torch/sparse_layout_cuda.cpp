// CUDA sides of the sparse torch operators: dense maps and voxels.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "sparse_call_cuda.h"

namespace {

using namespace s4d_torch;
using namespace s4d::sparse;

Tensor scatter(const Tensor& features_in, const Tensor& indices_in, const Ints& shape,
               int64_t batch, const Ints& order) {
  const ScatterArguments in(features_in, indices_in, shape, batch, order);
  const Call call(in.features);
  Tensor dense = call.empty(in.sizes, in.features.scalar_type());
  const Sites sites(call, in.indices, in.layout.grid);
  DenseTask task;
  task.map = sites.map;
  task.order = ints(sites.order);
  task.capacity = in.indices.size(0);
  task.dense_type = half_or_float(in.features, "features");
  task.features = Features{pointer(in.features), task.dense_type};
  task.stride = in.features.size(1);
  task.channels = small(in.features.size(1), "channels");
  for (size_t axis = 0; axis < 3; ++axis) {
    task.axes[axis] = static_cast<int32_t>(in.layout.order[axis]);
  }
  task.dense = pointer(dense);
  if (dense.numel() > 0) require(scatter_dense(task, call.stream()), "scatter_dense");
  call.check();
  return dense;
}

Tensor gather(const Tensor& dense_in, const Tensor& indices_in, const Ints& shape, int64_t batch,
              const Ints& order) {
  const GatherArguments in(dense_in, indices_in, shape, batch, order);
  const Call call(in.dense);
  const int64_t rows = in.indices.size(0);
  Tensor features = call.empty({rows, in.layout.channels}, in.dense.scalar_type());
  const Tensor count = call.number(small(rows, "the number of rows"));
  int32_t axes_of_grid[3];
  for (size_t axis = 0; axis < 3; ++axis) {
    axes_of_grid[axis] = static_cast<int32_t>(in.layout.order[axis]);
  }
  if (features.numel() == 0) return features;
  require(gather_dense(pointer(in.dense), half_or_float(in.dense, "the dense tensor"),
                       ints(in.indices), ints(count), rows, view_of(in.layout.grid), axes_of_grid,
                       small(in.layout.channels, "channels"), pointer(features),
                       in.layout.channels, call.stream()),
          "gather_dense");
  return features;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> voxelization(const Tensor& points_in,
                                                                const Tensor& rules_in,
                                                                const Ints& grid,
                                                                int64_t max_points,
                                                                int64_t max_voxels) {
  const Tensor points = torch::stable::contiguous(points_in);
  const VoxelRules rules = voxel_rules(points, rules_in, grid, max_points, max_voxels);
  s4d::sparse::voxelize(nullptr, 0, points.size(1), rules);  // its checks alone
  const Call call(points);
  const int64_t count = points.size(0), channels = points.size(1);
  const int64_t capacity = max_voxels ? std::min(max_voxels, count) : count;
  const int64_t bytes = voxelize_bytes(rules, count);
  STD_TORCH_CHECK(bytes > 0 && channels <= 16 && max_points <= 64,
                  "on CUDA, expected points of 3 to 16 values, max_points of at most 64 and a "
                  "grid of at most 2^37 cells");
  const Tensor indices = call.empty({capacity, 4}, ScalarType::Int);
  const Tensor means = call.empty({capacity, channels}, ScalarType::Float);
  const Tensor kept = call.empty({capacity}, ScalarType::Int);
  const Tensor total = call.empty({capacity}, ScalarType::Int);
  const Tensor voxels = call.number(0), point_count = call.number(small(count, "points"));
  const Tensor statistics = torch::stable::new_zeros(points, {3}, ScalarType::Int);
  const Tensor workspace = call.bytes(bytes);
  VoxelizeTask task;
  task.points = pointer(points);
  task.channels = static_cast<int32_t>(channels);
  task.point_count = ints(point_count);
  task.point_capacity = count;
  task.rules = rules;
  task.zyx = false;
  task.capacity = capacity;
  task.indices = ints(indices);
  task.means = static_cast<float*>(pointer(means));
  task.kept = ints(kept);
  task.total = ints(total);
  task.count = ints(voxels);
  task.statistics = ints(statistics);
  task.workspace = pointer(workspace);
  task.errors = call.errors();
  if (count > 0) require(s4d::sparse::cuda::voxelize(task, call.stream()), "voxelize");
  call.check();
  const int64_t found = count > 0 ? call.read(voxels)[0] : 0;
  auto rows = [&](Tensor all) {
    return torch::stable::clone(torch::stable::narrow(all, 0, 0, found));
  };
  Tensor found_indices = rows(indices);
  const Tensor cells = torch::stable::narrow(found_indices, 1, 1, 3);
  return {torch::stable::contiguous(cells), rows(means), rows(kept), rows(total),
          torch::stable::to(statistics, ScalarType::Long)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s4d, CUDA, m) {
  m.impl("sparse_scatter_dense", TORCH_BOX(&scatter));
  m.impl("sparse_gather_dense", TORCH_BOX(&gather));
  m.impl("sparse_voxelize", TORCH_BOX(&voxelization));
}
