// Index rows <-> 64-bit keys, and the orders the rulebooks are built from.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace s4d::sparse {

// key = ((batch * S0 + i0) * S1 + i1) * S2 + i2: sorting keys sorts rows by (batch, i0, i1, i2).
inline int64_t key_of(const Grid& grid, int64_t batch, int64_t a, int64_t b, int64_t c) {
  return ((batch * grid.shape[0] + a) * grid.shape[1] + b) * grid.shape[2] + c;
}

// Rows in key order: keys[i] ascending belongs to input row rows[i].
struct SortedRows {
  std::vector<int64_t> keys;
  std::vector<int32_t> rows;
};

// Checks every row (inside the grid, no row twice) and sorts. `indices` is (count, 4) int32.
SortedRows sort_rows(const int32_t* indices, int64_t count, const Grid& grid);

// Least-significant-digit radix sort; `rows` may be null. `limit` is one more than the largest key.
void radix_sort(std::vector<int64_t>& keys, std::vector<int32_t>* rows, int64_t limit);

void key_to_row(const Grid& grid, int64_t key, int32_t row[4]);

}  // namespace s4d::sparse
