// Shared vocabulary of the sparse convolution core: grids, kernel geometry, errors.
//
// An "index row" is four int32 numbers: batch, then the three spatial axes in the order of the
// grid (z y x for CenterPoint, x y z for the original BEVFusion). The core never needs to know
// which axis is which.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace s4d::sparse {

// Bad input: the message says what was expected and what came. Doors turn it into their own error.
class InvalidSparseInput : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

using Axes = std::array<int64_t, 3>;

struct Grid {
  int64_t batch = 1;
  Axes shape{};
  int64_t cells() const { return batch * shape[0] * shape[1] * shape[2]; }
};

// Cross-correlation geometry: input = output * stride - padding + offset * dilation.
struct Geometry {
  Axes kernel{};
  Axes stride{1, 1, 1};
  Axes padding{0, 0, 0};
  Axes dilation{1, 1, 1};
  int64_t volume() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// Throws InvalidSparseInput unless every size is positive and 64-bit keys of the grid cannot wrap.
void check_grid(const Grid& grid);
void check_geometry(const Geometry& geometry);

// Grid after a strided convolution: (in + 2 padding - dilation (kernel - 1) - 1) / stride + 1.
Grid output_grid(const Grid& grid, const Geometry& geometry);

}  // namespace s4d::sparse
