#include "voxelize.h"

#include <cmath>
#include <limits>
#include <string>

namespace s4d::sparse {

namespace {

// Open addressing with linear probing; never more than half full.
class CellTable {
 public:
  explicit CellTable(int64_t entries) {
    int64_t capacity = 1024;
    while (capacity < 2 * entries) capacity *= 2;
    keys_.assign(static_cast<size_t>(capacity), -1);
    voxels_.resize(static_cast<size_t>(capacity));
    mask_ = static_cast<uint64_t>(capacity - 1);
  }

  // The voxel of `key`; a new key gets `fresh` and sets `added`.
  int32_t find_or_add(int64_t key, int32_t fresh, bool* added) {
    *added = false;
    uint64_t slot = (static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15ull) >> 20 & mask_;
    while (keys_[slot] != key) {
      if (keys_[slot] < 0) {
        keys_[slot] = key;
        voxels_[slot] = fresh;
        *added = true;
        return fresh;
      }
      slot = (slot + 1) & mask_;
    }
    return voxels_[slot];
  }

 private:
  std::vector<int64_t> keys_;
  std::vector<int32_t> voxels_;
  uint64_t mask_ = 0;
};

constexpr int32_t kRefused = -1;

bool cell_of(const float* point, const VoxelRules& rules, int32_t cell[3]) {
  for (int axis = 0; axis < 3; ++axis) {
    const float p = point[axis];
    if (!(p >= rules.low[axis] && p < rules.high[axis])) return false;  // also NaN
    const float at = std::floor((p - rules.low[axis]) / rules.size[axis]);
    if (!(at >= 0.0f && at < static_cast<float>(rules.grid[axis]))) return false;
    cell[axis] = static_cast<int32_t>(at);
  }
  return true;
}

void check_rules(const VoxelRules& rules, int64_t count, int64_t channels) {
  check_grid(Grid{1, rules.grid});
  for (int axis = 0; axis < 3; ++axis) {
    const bool good = std::isfinite(rules.low[axis]) && std::isfinite(rules.high[axis]) &&
                      std::isfinite(rules.size[axis]) && rules.size[axis] > 0.0f &&
                      rules.low[axis] < rules.high[axis];
    if (!good) {
      throw InvalidSparseInput("expected finite low < high and voxel size > 0 on every axis; axis " +
                               std::to_string(axis) + " has " + std::to_string(rules.low[axis]) +
                               ", " + std::to_string(rules.high[axis]) + ", " +
                               std::to_string(rules.size[axis]));
    }
  }
  if (rules.max_points < 1 || rules.max_voxels < 0 || channels < 3 ||
      count > std::numeric_limits<int32_t>::max()) {
    throw InvalidSparseInput(
        "expected max_points >= 1, max_voxels >= 0 and fewer than 2^31 points of at least 3 "
        "values, got max_points " + std::to_string(rules.max_points) + ", max_voxels " +
        std::to_string(rules.max_voxels) + " and points (" + std::to_string(count) + ", " +
        std::to_string(channels) + ")");
  }
}

}  // namespace

Voxels voxelize(const float* points, int64_t count, int64_t channels, const VoxelRules& rules) {
  check_rules(rules, count, channels);
  Voxels voxels;
  CellTable table(count);
  const int64_t limit =
      rules.max_voxels ? rules.max_voxels : std::numeric_limits<int32_t>::max();
  for (int64_t i = 0; i < count; ++i) {
    const float* point = points + i * channels;
    int32_t cell[3];
    if (!cell_of(point, rules, cell)) {
      ++voxels.outside_points;
      continue;
    }
    const int64_t key = (int64_t{cell[2]} * rules.grid[1] + cell[1]) * rules.grid[0] + cell[0];
    const int64_t living = static_cast<int64_t>(voxels.kept.size());
    bool added = false;
    const int32_t voxel =
        table.find_or_add(key, living < limit ? static_cast<int32_t>(living) : kRefused, &added);
    if (voxel == kRefused) {
      voxels.refused_voxels += added ? 1 : 0;
      ++voxels.refused_points;
      continue;
    }
    if (added) {
      voxels.cells.insert(voxels.cells.end(), cell, cell + 3);
      voxels.means.insert(voxels.means.end(), static_cast<size_t>(channels), 0.0f);
      voxels.kept.push_back(0);
      voxels.total.push_back(0);
    }
    ++voxels.total[voxel];
    if (voxels.kept[voxel] == rules.max_points) continue;
    ++voxels.kept[voxel];
    float* sum = voxels.means.data() + int64_t{voxel} * channels;
    for (int64_t c = 0; c < channels; ++c) sum[c] += point[c];
  }
  for (size_t voxel = 0; voxel < voxels.kept.size(); ++voxel) {
    float* sum = voxels.means.data() + voxel * static_cast<size_t>(channels);
    const float points_in_mean = static_cast<float>(voxels.kept[voxel]);
    for (int64_t c = 0; c < channels; ++c) sum[c] /= points_in_mean;
  }
  return voxels;
}

}  // namespace s4d::sparse
