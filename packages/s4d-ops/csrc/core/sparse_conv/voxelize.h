// Points -> voxels with the mean of their first points.
#pragma once

#include <cstdint>
#include <vector>

#include "geometry.h"

namespace s4d::sparse {

struct VoxelRules {
  float low[3]{};    // x y z
  float high[3]{};
  float size[3]{};
  Axes grid{};       // cells along x y z
  int64_t max_points = 10;
  int64_t max_voxels = 0;  // 0: no limit
};

struct Voxels {
  std::vector<int32_t> cells;   // (count, 3) x y z, in the order of each voxel's first point
  std::vector<float> means;     // (count, channels)
  std::vector<int32_t> kept;    // (count): points in the mean, at most max_points
  std::vector<int32_t> total;   // (count): points that fell into the voxel
  int64_t refused_voxels = 0;   // cells that found no room under max_voxels
  int64_t refused_points = 0;   // points of those cells
  int64_t outside_points = 0;   // outside the range or the grid, or not finite
};

// `points` is (count, channels), x y z first, in file order. All of it in float32: a point counts
// if low <= p < high on each axis and its cell floor((p - low) / size), with an IEEE division,
// lies in the grid. A voxel is born at its first point. Means are sums in file order / count.
Voxels voxelize(const float* points, int64_t count, int64_t channels, const VoxelRules& rules);

}  // namespace s4d::sparse
