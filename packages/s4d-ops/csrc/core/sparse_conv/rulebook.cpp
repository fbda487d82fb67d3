#include "rulebook.h"

#include <algorithm>
#include <limits>
#include <string>

#include "../parallel.h"
#include "coordinates.h"

namespace s4d::sparse {

namespace {

struct Cell {
  int64_t batch;
  Axes at;
};

Cell cell_of(const Grid& grid, int64_t key) {
  Cell cell{};
  for (int axis = 2; axis >= 0; --axis) {
    cell.at[axis] = key % grid.shape[axis];
    key /= grid.shape[axis];
  }
  cell.batch = key;
  return cell;
}

Axes offset_of(const Geometry& geometry, int64_t k) {
  return {k / (geometry.kernel[1] * geometry.kernel[2]),
          k / geometry.kernel[2] % geometry.kernel[1], k % geometry.kernel[2]};
}

// Fills one table row: for output cells in ascending order the wanted input keys of one offset
// ascend too (they are the output position times the stride plus a constant), so one cursor over
// the sorted input keys finds them all. Cells whose input leaves the grid are skipped.
void fill_offset(const std::vector<Cell>& outputs, const int32_t* output_rows, const Grid& grid,
                 const Axes& stride, const Axes& shift, const SortedRows& inputs, int32_t* row) {
  const int64_t in_count = static_cast<int64_t>(inputs.keys.size());
  int64_t cursor = 0;
  for (size_t o = 0; o < outputs.size(); ++o) {
    const Cell& cell = outputs[o];
    const int64_t a = cell.at[0] * stride[0] + shift[0];
    const int64_t b = cell.at[1] * stride[1] + shift[1];
    const int64_t c = cell.at[2] * stride[2] + shift[2];
    int32_t found = -1;
    if (a >= 0 && a < grid.shape[0] && b >= 0 && b < grid.shape[1] && c >= 0 &&
        c < grid.shape[2]) {
      const int64_t wanted = key_of(grid, cell.batch, a, b, c);
      while (cursor < in_count && inputs.keys[cursor] < wanted) ++cursor;
      if (cursor < in_count && inputs.keys[cursor] == wanted) found = inputs.rows[cursor];
    }
    row[output_rows ? output_rows[o] : static_cast<int64_t>(o)] = found;
  }
}

std::vector<Cell> cells_of(const Grid& grid, const std::vector<int64_t>& keys) {
  std::vector<Cell> cells(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) cells[i] = cell_of(grid, keys[i]);
  return cells;
}

void allocate_table(Rulebook& book) {
  book.table.resize(static_cast<size_t>(book.volume) * static_cast<size_t>(book.out_rows));
}

// Along one axis: the output positions that read input position `at`, one per fitting offset.
void readers(const Geometry& geometry, const Grid& out, int axis, int64_t at,
             std::vector<int64_t>& positions) {
  positions.clear();
  for (int64_t k = 0; k < geometry.kernel[axis]; ++k) {
    const int64_t scaled = at + geometry.padding[axis] - k * geometry.dilation[axis];
    if (scaled < 0 || scaled % geometry.stride[axis] != 0) continue;
    const int64_t position = scaled / geometry.stride[axis];
    if (position < out.shape[axis]) positions.push_back(position);
  }
}

std::vector<int64_t> reached_keys(const SortedRows& inputs, const Grid& grid, const Grid& out,
                                  const Geometry& geometry) {
  std::vector<int64_t> keys;
  keys.reserve(inputs.keys.size() * 2);
  std::vector<int64_t> reach[3];
  for (int64_t key : inputs.keys) {
    const Cell cell = cell_of(grid, key);
    for (int axis = 0; axis < 3; ++axis) readers(geometry, out, axis, cell.at[axis], reach[axis]);
    for (int64_t a : reach[0]) {
      for (int64_t b : reach[1]) {
        for (int64_t c : reach[2]) keys.push_back(key_of(out, cell.batch, a, b, c));
      }
    }
  }
  radix_sort(keys, nullptr, out.cells());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return keys;
}

}  // namespace

Rulebook submanifold_rulebook(const int32_t* indices, int64_t count, const Grid& grid,
                              const Geometry& geometry, int threads) {
  check_geometry(geometry);
  for (int64_t size : geometry.kernel) {
    if (size % 2 == 0) {
      throw InvalidSparseInput("a submanifold convolution needs odd kernel sizes, got " +
                               std::to_string(size));
    }
  }
  const SortedRows inputs = sort_rows(indices, count, grid);
  const std::vector<Cell> cells = cells_of(grid, inputs.keys);
  Rulebook book;
  book.volume = geometry.volume();
  book.in_rows = book.out_rows = count;
  book.out_grid = grid;
  allocate_table(book);
  parallel_for(book.volume, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Axes offset = offset_of(geometry, k);
      Axes shift{};
      for (int axis = 0; axis < 3; ++axis) {
        shift[axis] = (offset[axis] - geometry.kernel[axis] / 2) * geometry.dilation[axis];
      }
      fill_offset(cells, inputs.rows.data(), grid, {1, 1, 1}, shift, inputs,
                  book.table.data() + k * count);
    }
  });
  return book;
}

Rulebook strided_rulebook(const int32_t* indices, int64_t count, const Grid& grid,
                          const Geometry& geometry, int threads) {
  const Grid out = output_grid(grid, geometry);
  check_grid(out);
  const SortedRows inputs = sort_rows(indices, count, grid);
  const std::vector<int64_t> keys = reached_keys(inputs, grid, out, geometry);
  if (keys.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw InvalidSparseInput("the convolution reaches more than 2^31 output cells");
  }
  Rulebook book;
  book.volume = geometry.volume();
  book.in_rows = count;
  book.out_rows = static_cast<int64_t>(keys.size());
  book.out_grid = out;
  book.out_indices.resize(keys.size() * 4);
  for (size_t i = 0; i < keys.size(); ++i) {
    key_to_row(out, keys[i], book.out_indices.data() + 4 * i);
  }
  const std::vector<Cell> cells = cells_of(out, keys);
  allocate_table(book);
  parallel_for(book.volume, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Axes offset = offset_of(geometry, k);
      Axes shift{};
      for (int axis = 0; axis < 3; ++axis) {
        shift[axis] = offset[axis] * geometry.dilation[axis] - geometry.padding[axis];
      }
      fill_offset(cells, nullptr, grid, geometry.stride, shift, inputs,
                  book.table.data() + k * book.out_rows);
    }
  });
  return book;
}

void check_table(const int32_t* table, int64_t volume, int64_t out_rows, int64_t in_rows) {
  const int64_t size = volume * out_rows;
  int32_t low = 0;
  int32_t high = -1;
  for (int64_t i = 0; i < size; ++i) {
    low = std::min(low, table[i]);
    high = std::max(high, table[i]);
  }
  if (low < -1 || high >= in_rows) {
    throw InvalidSparseInput("expected rulebook entries from -1 to " + std::to_string(in_rows - 1) +
                             ", got " + std::to_string(low < -1 ? low : high));
  }
}

std::vector<int32_t> transpose_table(const int32_t* table, int64_t volume, int64_t out_rows,
                                     int64_t in_rows, int threads) {
  check_table(table, volume, out_rows, in_rows);
  std::vector<int32_t> result(static_cast<size_t>(volume) * static_cast<size_t>(in_rows), -1);
  std::vector<char> doubled(static_cast<size_t>(volume), 0);
  parallel_for(volume, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int32_t* from = table + k * out_rows;
      int32_t* to = result.data() + k * in_rows;
      for (int64_t o = 0; o < out_rows; ++o) {
        if (from[o] < 0) continue;
        if (to[from[o]] >= 0) doubled[k] = 1;
        to[from[o]] = static_cast<int32_t>(o);
      }
    }
  });
  if (std::find(doubled.begin(), doubled.end(), 1) != doubled.end()) {
    throw InvalidSparseInput(
        "the rulebook table lets two output rows read one input row at the same kernel offset");
  }
  return result;
}

}  // namespace s4d::sparse
