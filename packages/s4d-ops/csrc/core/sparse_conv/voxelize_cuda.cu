#include "voxelize_cuda.h"

#include <algorithm>

#include "convolution_cuda.h"
#include "rows_device.cuh"
#include "site_map_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int32_t kNone = 0x7f7f7f7f;  // what memset can write; above any point number
constexpr int kMaxChannels = 16;
constexpr int kMaxPoints = 64;

int64_t align(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// The workspace. Two site maps: of the cells, and of the points that are the first of their cell;
// the rank of a cell's first point is the voxel's number in order of birth.
struct Workspace {
  SiteMap cells, births;
  int32_t* numbers;  // cells.count, births.count, saved first row, statistics (3)
  int32_t* first;    // (points): by rank of the cell, its first point
  int32_t* slots;    // (voxels, max_points): the voxel's first points, ascending
  int32_t* total;    // (voxels)
  int64_t cleared_bytes, none_bytes, bytes;
};

GridView cell_grid(const VoxelRules& r) {
  return {1, static_cast<int32_t>(r.grid[2]), static_cast<int32_t>(r.grid[1]),
          static_cast<int32_t>(r.grid[0])};
}

int64_t most_voxels(const VoxelRules& rules, int64_t points) {
  return rules.max_voxels > 0 ? std::min<int64_t>(rules.max_voxels, points) : points;
}

Workspace divide(const VoxelRules& rules, int64_t points, void* memory) {
  Workspace w{};
  char* at = static_cast<char*>(memory);
  const auto take = [&](int64_t bytes) {
    char* p = at;
    at += align(bytes);
    return p;
  };
  const int64_t voxels = most_voxels(rules, points);
  w.cells.grid = cell_grid(rules);
  w.births.grid = {1, 1, 1, static_cast<int32_t>(std::max<int64_t>(points, 1))};
  w.cells.memory = take(site_map_bytes(w.cells.grid));
  w.births.memory = take(site_map_bytes(w.births.grid));
  w.total = reinterpret_cast<int32_t*>(take(voxels * 4));
  w.numbers = reinterpret_cast<int32_t*>(take(32));
  w.cleared_bytes = at - static_cast<char*>(memory);
  w.first = reinterpret_cast<int32_t*>(take(points * 4));
  w.slots = reinterpret_cast<int32_t*>(take(voxels * rules.max_points * 4));
  w.bytes = at - static_cast<char*>(memory);
  w.none_bytes = w.bytes - w.cleared_bytes;
  w.cells.count = w.numbers;
  w.births.count = w.numbers + 1;
  return w;
}

template <class T>
__device__ int64_t cell_of(const VoxelizeTask& task, int64_t i, const GridView& grid,
                           int32_t (&cell)[3]) {
  const T* point = static_cast<const T*>(task.points) + i * task.channels;
  const int32_t size[3] = {grid.c, grid.b, grid.a};
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const float p = value_of(point[axis]);
    const float low = task.rules.low[axis];
    if (!(p >= low && p < task.rules.high[axis])) return -1;  // also NaN
    const float at = floorf(__fdiv_rn(__fsub_rn(p, low), task.rules.size[axis]));
    if (!(at >= 0.0f && at < static_cast<float>(size[axis]))) return -1;
    cell[axis] = static_cast<int32_t>(at);
  }
  return key_at(grid, 0, cell[2], cell[1], cell[0]);
}

template <class T>
__global__ void mark_kernel(VoxelizeTask task, MapView cells, int32_t* numbers) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i == 0) numbers[2] = task.first_row ? *task.first_row : 0;
  if (i >= min(int64_t{*task.point_count}, task.point_capacity)) return;
  int32_t cell[3];
  const int64_t key = cell_of<T>(task, i, cells.grid, cell);
  if (key < 0) {
    atomicAdd(numbers + 5, 1);
  } else {
    mark(cells, key);
  }
}

template <class T>
__global__ void first_kernel(VoxelizeTask task, MapView cells, int32_t* first) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= min(int64_t{*task.point_count}, task.point_capacity)) return;
  int32_t cell[3];
  const int64_t key = cell_of<T>(task, i, cells.grid, cell);
  if (key >= 0) atomicMin(first + rank_of(cells, key), static_cast<int32_t>(i));
}

__global__ void birth_kernel(const int32_t* first, const int32_t* count, MapView births) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < *count) mark(births, first[i]);
}

// Gives each point to its voxel. Of the points of a voxel, slot j ends with the j-th smallest: each
// slot keeps the smallest number that passes and hands on the other.
template <class T>
__global__ void collect_kernel(VoxelizeTask task, MapView cells, MapView births,
                               const int32_t* first, int64_t voxels, int32_t* total,
                               int32_t* slots, int32_t* numbers) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= min(int64_t{*task.point_count}, task.point_capacity)) return;
  int32_t cell[3];
  const int64_t key = cell_of<T>(task, i, cells.grid, cell);
  if (key < 0) return;
  const int32_t birth = first[rank_of(cells, key)];
  const int64_t voxel = rank_of(births, birth);
  if (voxel >= voxels) {
    if (birth == i) atomicAdd(numbers + 3, 1);
    atomicAdd(numbers + 4, 1);
    return;
  }
  atomicAdd(total + voxel, 1);
  int32_t mine = static_cast<int32_t>(i);
  int32_t* slot = slots + voxel * task.rules.max_points;
  for (int j = 0; j < task.rules.max_points && mine != kNone; ++j) {
    mine = max(mine, atomicMin(slot + j, mine));
  }
  const int64_t row = numbers[2] + voxel;
  if (birth == i && row < task.capacity) {
    reinterpret_cast<int4*>(task.indices)[row] =
        task.zyx ? make_int4(task.batch, cell[2], cell[1], cell[0])
                 : make_int4(task.batch, cell[0], cell[1], cell[2]);
  }
}

// A thread averages one channel of one voxel: neighbouring threads read neighbouring values.
template <class T>
__global__ void mean_kernel(VoxelizeTask task, int64_t voxels, const int32_t* total,
                            const int32_t* slots, const int32_t* numbers, int padded) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t found = min(int64_t{numbers[1]}, voxels);
  if (at == 0) {
    const int64_t rows = numbers[2] + found;
    *task.count = static_cast<int32_t>(rows);
    if (task.errors && rows > task.capacity) {
      atomicAdd(task.errors + kRowsLost,
                static_cast<int32_t>(min(rows - task.capacity, found)));
    }
    if (task.statistics) {
      for (int i = 0; i < 3; ++i) task.statistics[i] = numbers[3 + i];
    }
  }
  const int64_t voxel = at / padded;
  const int64_t row = numbers[2] + voxel;
  if (voxel >= found || row >= task.capacity) return;
  const int c = static_cast<int>(at % padded);
  const int32_t* slot = slots + voxel * task.rules.max_points;
  float sum = 0.0f;
  int kept = 0;
  for (; kept < task.rules.max_points && slot[kept] != kNone; ++kept) {
    if (c < task.channels) {
      const int64_t point = slot[kept];
      sum = __fadd_rn(sum, value_of(static_cast<const T*>(task.points)[point * task.channels + c]));
    }
  }
  const float mean = __fdiv_rn(sum, static_cast<float>(kept));
  if (task.means && c < task.channels) task.means[row * task.channels + c] = mean;
  if (task.features) {
    static_cast<__half*>(task.features)[row * padded + c] = __float2half_rn(mean);
  }
  if (c == 0) {
    if (task.kept) task.kept[row] = kept;
    if (task.total) task.total[row] = total[voxel];
  }
}

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>((items + kThreads - 1) / kThreads);
}

template <class T>
cudaError_t run(const VoxelizeTask& task, cudaStream_t stream) {
  const Workspace w = divide(task.rules, task.point_capacity, task.workspace);
  cudaError_t error = cudaMemsetAsync(task.workspace, 0, w.cleared_bytes, stream);
  if (error == cudaSuccess) {
    error = cudaMemsetAsync(w.first, kNone & 0xff, w.none_bytes, stream);
  }
  if (error != cudaSuccess) return error;
  const MapView cells = view_of(w.cells), births = view_of(w.births);
  const int64_t voxels = most_voxels(task.rules, task.point_capacity);
  const unsigned blocks = std::max(blocks_for(task.point_capacity), 1u);
  mark_kernel<T><<<blocks, kThreads, 0, stream>>>(task, cells, w.numbers);
  error = rank_sites(w.cells, stream);
  if (error != cudaSuccess) return error;
  first_kernel<T><<<blocks, kThreads, 0, stream>>>(task, cells, w.first);
  birth_kernel<<<blocks, kThreads, 0, stream>>>(w.first, w.cells.count, births);
  error = rank_sites(w.births, stream);
  if (error != cudaSuccess) return error;
  collect_kernel<T><<<blocks, kThreads, 0, stream>>>(task, cells, births, w.first, voxels, w.total,
                                                     w.slots, w.numbers);
  const int padded = padded_channels(DType::f16, task.channels);
  mean_kernel<T><<<std::max(blocks_for(voxels * padded), 1u), kThreads, 0, stream>>>(
      task, voxels, w.total, w.slots, w.numbers, padded);
  return cudaGetLastError();
}

bool good(const VoxelRules& rules, int64_t points) {
  return rules.max_points >= 1 && rules.max_points <= kMaxPoints && rules.max_voxels >= 0 &&
         points >= 0 && points < kNone && rules.grid[0] <= INT32_MAX &&
         rules.grid[1] <= INT32_MAX && rules.grid[2] <= INT32_MAX &&
         site_map_bytes(cell_grid(rules)) > 0;
}

}  // namespace

int64_t voxelize_bytes(const VoxelRules& rules, int64_t point_capacity) {
  return good(rules, point_capacity) ? divide(rules, point_capacity, nullptr).bytes : 0;
}

cudaError_t voxelize(const VoxelizeTask& task, cudaStream_t stream) {
  if (!good(task.rules, task.point_capacity) || task.channels < 3 ||
      task.channels > kMaxChannels || task.capacity < 0 || !task.count || !task.point_count) {
    return cudaErrorInvalidValue;
  }
  switch (task.point_type) {
    case DType::f32: return run<float>(task, stream);
    case DType::f16: return run<__half>(task, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace s4d::sparse::cuda
