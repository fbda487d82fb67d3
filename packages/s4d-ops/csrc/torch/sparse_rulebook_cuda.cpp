// CUDA sides of the sparse torch operators: rulebooks. Their sizes depend on the data, so these wait
// for the device.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "sparse_call_cuda.h"

namespace {

using namespace s4d_torch;
using namespace s4d::sparse;

Tensor table_over(const Call& call, const Sites& in, const Tensor& out_indices,
                  const Tensor& out_count, const GeometryView& geometry, int64_t volume) {
  const int64_t rows = out_indices.size(0);
  const Tensor table = call.empty({volume, rows}, ScalarType::Int);
  TableTask task;
  task.out_indices = ints(out_indices);
  task.out_count = ints(out_count);
  task.capacity = rows;
  task.in = in.map;
  task.in_order = ints(in.order);
  task.geometry = geometry;
  task.table = ints(table);
  if (rows > 0) require(build_tables(&task, 1, call.stream()), "build_tables");
  return table;
}

Tensor submanifold_table(const Tensor& indices_in, const Ints& shape, int64_t batch,
                         const Ints& kernel, const Ints& dilation) {
  const Tensor indices = int_rows(indices_in, "indices", 4);
  const Call call(indices);
  Geometry geometry;
  geometry.kernel = axes(kernel, "kernel");
  geometry.dilation = axes(dilation, "dilation");
  check_geometry(geometry);
  for (size_t axis = 0; axis < 3; ++axis) {
    STD_TORCH_CHECK(geometry.kernel[axis] % 2 == 1,
                    "a submanifold convolution needs odd kernel sizes, got ",
                    geometry.kernel[axis]);
    geometry.padding[axis] = geometry.kernel[axis] / 2 * geometry.dilation[axis];
  }
  const Sites sites(call, indices, Grid{batch, axes(shape, "shape")});
  const Tensor table =
      table_over(call, sites, indices, sites.given, view_of(geometry), geometry.volume());
  call.check();
  return table;
}

std::tuple<Tensor, Tensor> strided(const Tensor& indices_in, const Ints& shape, int64_t batch,
                                   const Ints& kernel, const Ints& stride, const Ints& padding,
                                   const Ints& dilation) {
  const Tensor indices = int_rows(indices_in, "indices", 4);
  const Call call(indices);
  const Geometry geometry{axes(kernel, "kernel"), axes(stride, "stride"),
                          axes(padding, "padding"), axes(dilation, "dilation")};
  const Grid grid{batch, axes(shape, "shape")};
  const Grid out = output_grid(grid, geometry);
  check_grid(out);
  const Sites sites(call, indices, grid);
  const Tensor count = call.number(0);
  SiteLevel level;
  level.geometry = view_of(geometry);
  level.map.grid = view_of(out);
  level.map.count = ints(count);
  const int64_t bytes = site_map_bytes(level.map.grid);
  STD_TORCH_CHECK(bytes > 0, "the output grid has more than 2^37 cells");
  const Tensor memory = call.bytes(bytes);
  level.map.memory = memory.data_ptr();
  // As many rows as often suffice; where they do not, the first pass says how many there are.
  level.capacity = std::min(out.cells(), std::max<int64_t>(2 * indices.size(0), 256));
  Tensor rows = call.empty({level.capacity, 4}, ScalarType::Int);
  for (bool first = true;; first = false) {
    level.indices = ints(rows);
    require(strided_sites(ints(indices), ints(sites.given), indices.size(0), level, false,
                          call.errors(), call.stream()),
            "strided_sites");
    if (call.check() == 0 || !first) break;
    level.capacity = call.read(count)[0];
    rows = call.empty({level.capacity, 4}, ScalarType::Int);
  }
  const int64_t found = call.read(count)[0];
  rows = torch::stable::clone(torch::stable::narrow(rows, 0, 0, found));
  const Tensor table = table_over(call, sites, rows, count, level.geometry, geometry.volume());
  return {rows, table};
}

Tensor transpose(const Tensor& table_in, int64_t in_rows) {
  const Tensor table = int_rows(table_in, "table", -1);
  STD_TORCH_CHECK(in_rows >= 0, "expected in_rows >= 0, got ", in_rows);
  const Call call(table);
  Tensor result = call.empty({table.size(0), in_rows}, ScalarType::Int);
  const Tensor rows = call.number(small(table.size(1), "table columns"));
  require(transpose_table(ints(table), small(table.size(0), "kernel offsets"), ints(rows),
                          table.size(1), in_rows, ints(result), call.errors(), call.stream()),
          "transpose_table");
  call.check();
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s4d, CUDA, m) {
  m.impl("sparse_submanifold_table", TORCH_BOX(&submanifold_table));
  m.impl("sparse_strided_rulebook", TORCH_BOX(&strided));
  m.impl("sparse_transpose_table", TORCH_BOX(&transpose));
}
