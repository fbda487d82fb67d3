// Points -> voxels with the mean of their first points: the rules of voxelize.h, the same voxels in
// the same order (each voxel's first point) with the same bits in their means.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../types.h"
#include "voxelize.h"

namespace s4d::sparse::cuda {

struct VoxelizeTask {
  const void* points = nullptr;  // (point_capacity, channels), x y z first, in file order
  DType point_type = DType::f32;  // f32 or f16 (exact in f32)
  int32_t channels = 0;           // 3 to 16
  const int32_t* point_count = nullptr;
  int64_t point_capacity = 0;
  VoxelRules rules;         // checked by the caller as voxelize.h does; max_points <= 64
  int32_t batch = 0;        // first column of the index rows
  bool zyx = true;          // index rows batch z y x, else batch x y z
  const int32_t* first_row = nullptr;  // may be null: 0. Rows are appended after *first_row

  int64_t capacity = 0;        // of the arrays below, in rows, first_row included
  int32_t* indices = nullptr;  // (capacity, 4)
  float* means = nullptr;      // (capacity, channels), may be null
  void* features = nullptr;    // (capacity, padded_channels(f16, channels)) f16, may be null
  int32_t* kept = nullptr;     // (capacity), may be null
  int32_t* total = nullptr;    // (capacity), may be null
  int32_t* count = nullptr;    // (1): *first_row + voxels; may be the memory of first_row
  // (3), may be null: refused voxels, refused points (over max_voxels), points outside.
  int32_t* statistics = nullptr;
  void* workspace = nullptr;   // voxelize_bytes
  int32_t* errors = nullptr;   // kRowsLost: voxels that found no row under `capacity`
};

// 0 where the task's sizes are not served.
int64_t voxelize_bytes(const VoxelRules& rules, int64_t point_capacity);

cudaError_t voxelize(const VoxelizeTask& task, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
