// Rulebooks: which input row meets which output row at which kernel offset.
//
// A rulebook is one dense table, int32 (volume, out_rows): table[k * out_rows + o] is the input
// row at kernel offset k of output row o, or -1. At most one row can be there, so the table is
// exact, and a convolution over it needs no atomics: each output row sums its offsets in order.
// Kernel offset number: k = (k0 * K1 + k1) * K2 + k2, cross-correlation (not flipped).
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace s4d::sparse {

struct Rulebook {
  int64_t volume = 0;
  int64_t in_rows = 0;
  int64_t out_rows = 0;
  Grid out_grid;
  std::vector<int32_t> out_indices;  // (out_rows, 4), ascending; empty for submanifold (= input)
  std::vector<int32_t> table;        // (volume, out_rows)
};

// Output rows = input rows, in their order; the input of offset k lies at
// output + (k - kernel / 2) * dilation. Stride and padding of `geometry` play no part.
Rulebook submanifold_rulebook(const int32_t* indices, int64_t count, const Grid& grid,
                              const Geometry& geometry, int threads);

// An output cell exists where at least one active input falls into its window. Output rows are
// sorted by (batch, axis 0, axis 1, axis 2), whatever the order of the input rows.
Rulebook strided_rulebook(const int32_t* indices, int64_t count, const Grid& grid,
                          const Geometry& geometry, int threads);

// The same pairs seen from the input: (volume, in_rows), entry = output row or -1. It drives the
// inverse convolution and the gradient of the features. A table row in which two outputs read one
// input at the same offset cannot come from a rulebook and is refused.
std::vector<int32_t> transpose_table(const int32_t* table, int64_t volume, int64_t out_rows,
                                     int64_t in_rows, int threads);

// Entries must lie in [-1, in_rows).
void check_table(const int32_t* table, int64_t volume, int64_t out_rows, int64_t in_rows);

}  // namespace s4d::sparse
