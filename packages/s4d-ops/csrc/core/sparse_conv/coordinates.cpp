#include "coordinates.h"

#include <algorithm>
#include <limits>
#include <string>

namespace s4d::sparse {

namespace {

std::string describe(const int32_t* row) {
  return "(" + std::to_string(row[0]) + ", " + std::to_string(row[1]) + ", " +
         std::to_string(row[2]) + ", " + std::to_string(row[3]) + ")";
}

std::string describe(const Axes& axes) {
  return "[" + std::to_string(axes[0]) + ", " + std::to_string(axes[1]) + ", " +
         std::to_string(axes[2]) + "]";
}

}  // namespace

void check_grid(const Grid& grid) {
  if (grid.batch < 1 || *std::min_element(grid.shape.begin(), grid.shape.end()) < 1) {
    throw InvalidSparseInput("expected a positive batch size and grid shape, got batch " +
                             std::to_string(grid.batch) + " and shape " + describe(grid.shape));
  }
  int64_t cells = grid.batch;
  for (int64_t size : grid.shape) {
    if (size > std::numeric_limits<int32_t>::max() ||
        cells > std::numeric_limits<int64_t>::max() / 2 / size) {
      throw InvalidSparseInput("the grid " + describe(grid.shape) + " with batch " +
                               std::to_string(grid.batch) + " has too many cells for 64-bit keys");
    }
    cells *= size;
  }
}

void check_geometry(const Geometry& geometry) {
  for (int axis = 0; axis < 3; ++axis) {
    const bool positive = geometry.kernel[axis] >= 1 && geometry.stride[axis] >= 1 &&
                          geometry.dilation[axis] >= 1 && geometry.padding[axis] >= 0;
    const int64_t large = 1 << 20;
    if (!positive || geometry.kernel[axis] > 64 || geometry.stride[axis] > large ||
        geometry.padding[axis] > large || geometry.dilation[axis] > large) {
      throw InvalidSparseInput(
          "expected kernel sizes from 1 to 64, stride and dilation >= 1 and padding >= 0, got "
          "kernel " + describe(geometry.kernel) + ", stride " + describe(geometry.stride) +
          ", padding " + describe(geometry.padding) + ", dilation " + describe(geometry.dilation));
    }
  }
}

Grid output_grid(const Grid& grid, const Geometry& geometry) {
  check_grid(grid);
  check_geometry(geometry);
  Grid out = grid;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t reach = geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1;
    const int64_t room = grid.shape[axis] + 2 * geometry.padding[axis] - reach;
    if (room < 0) {
      throw InvalidSparseInput("the kernel " + describe(geometry.kernel) + " with padding " +
                               describe(geometry.padding) + " is larger than the grid " +
                               describe(grid.shape) + ": the output would be empty");
    }
    out.shape[axis] = room / geometry.stride[axis] + 1;
  }
  return out;
}

void key_to_row(const Grid& grid, int64_t key, int32_t row[4]) {
  for (int axis = 2; axis >= 0; --axis) {
    row[axis + 1] = static_cast<int32_t>(key % grid.shape[axis]);
    key /= grid.shape[axis];
  }
  row[0] = static_cast<int32_t>(key);
}

void radix_sort(std::vector<int64_t>& keys, std::vector<int32_t>* rows, int64_t limit) {
  constexpr int bits = 11;
  constexpr int64_t buckets = int64_t{1} << bits;
  const size_t count = keys.size();
  std::vector<int64_t> other_keys(count);
  std::vector<int32_t> other_rows(rows ? count : 0);
  std::vector<size_t> start(buckets);
  for (int shift = 0; shift < 63 && (limit - 1) >> shift > 0; shift += bits) {
    std::fill(start.begin(), start.end(), 0);
    for (int64_t key : keys) ++start[(key >> shift) & (buckets - 1)];
    size_t sum = 0;
    for (size_t& bucket : start) {
      const size_t here = bucket;
      bucket = sum;
      sum += here;
    }
    for (size_t i = 0; i < count; ++i) {
      const size_t to = start[(keys[i] >> shift) & (buckets - 1)]++;
      other_keys[to] = keys[i];
      if (rows) other_rows[to] = (*rows)[i];
    }
    keys.swap(other_keys);
    if (rows) rows->swap(other_rows);
  }
}

SortedRows sort_rows(const int32_t* indices, int64_t count, const Grid& grid) {
  check_grid(grid);
  if (count > std::numeric_limits<int32_t>::max()) {
    throw InvalidSparseInput("expected fewer than 2^31 index rows, got " + std::to_string(count));
  }
  SortedRows sorted;
  sorted.keys.resize(count);
  sorted.rows.resize(count);
  bool ascending = true;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* row = indices + 4 * i;
    const bool inside = row[0] >= 0 && row[0] < grid.batch && row[1] >= 0 &&
                        row[1] < grid.shape[0] && row[2] >= 0 && row[2] < grid.shape[1] &&
                        row[3] >= 0 && row[3] < grid.shape[2];
    if (!inside) {
      throw InvalidSparseInput("index row " + std::to_string(i) + " " + describe(row) +
                               " lies outside batch " + std::to_string(grid.batch) + " and grid " +
                               describe(grid.shape));
    }
    sorted.keys[i] = key_of(grid, row[0], row[1], row[2], row[3]);
    sorted.rows[i] = static_cast<int32_t>(i);
    ascending = ascending && (i == 0 || sorted.keys[i - 1] < sorted.keys[i]);
  }
  if (ascending) return sorted;
  radix_sort(sorted.keys, &sorted.rows, grid.cells());
  for (int64_t i = 1; i < count; ++i) {
    if (sorted.keys[i] == sorted.keys[i - 1]) {
      throw InvalidSparseInput("index rows " + std::to_string(sorted.rows[i - 1]) + " and " +
                               std::to_string(sorted.rows[i]) + " are both " +
                               describe(indices + 4 * int64_t{sorted.rows[i]}) +
                               ": every active cell may appear once");
    }
  }
  return sorted;
}

}  // namespace s4d::sparse
