// Sparse rows <-> dense tensors.
#pragma once

#include <cstdint>

#include "../types.h"
#include "geometry.h"

namespace s4d::sparse {

// The dense tensor is (batch, channels, A, B, C), contiguous, where A, B, C are the grid's axes in
// the order `order`. With order {0, 1, 2} and a z y x grid it is NCDHW, and seen as
// (batch, channels * D, H, W) its channel number is c * D + z. An x y z grid takes {2, 0, 1}.
struct DenseLayout {
  Grid grid;
  Axes order{0, 1, 2};
  int64_t channels = 0;
};

// Writes every element: zero where no row lies. `element` is the size of one value in bytes
// (1, 2, 4 or 8). Rows are checked against the grid, duplicates are refused.
void scatter_dense(const void* features, const int32_t* indices, int64_t count,
                   const DenseLayout& layout, int64_t element, void* dense, int threads);

// The reverse (and the gradient): the dense values at the rows' cells, (count, channels).
void gather_dense(const void* dense, const int32_t* indices, int64_t count,
                  const DenseLayout& layout, int64_t element, void* features, int threads);

}  // namespace s4d::sparse
