// Device side of site maps: units of 96 cells, lookups, and rows from keys.
#pragma once

#include <cuda_runtime.h>

#include "site_map_cuda.h"

namespace s4d::sparse::cuda {

constexpr int kCellsPerUnit = 96;
constexpr int64_t kMaxCells = int64_t{1} << 37;  // word numbers fit 32 bits
constexpr int kMaxChain = 8;            // levels that one launch works on
constexpr int64_t kSpansToSum = 16384;  // beyond this the spans are summed by a kernel of their own

// Memory of a map: units (uint4: sites before, three words of bits), then the sites of each span
// of units. Spans are what one block of the listing kernel works on.
struct MapView {
  GridView grid;
  uint4* units;
  int32_t* spans;
  int32_t* count;
  uint32_t number_of_units;
  uint32_t number_of_spans;
  int span_shift;  // units of a span, as a power of two, at least 32
};

__host__ __device__ inline int64_t cells_of(const GridView& g) {
  return int64_t{g.batch} * g.a * g.b * g.c;
}

MapView view_of(const SiteMap& map);

// Ranks, counts and (where `indices` is not null) index rows of levels whose maps are marked; at
// most kMaxChain of them. errors: kRowsLost.
cudaError_t list_sites(const SiteLevel* levels, int number, int32_t* errors, cudaStream_t stream);

// Of one map alone, without rows.
cudaError_t rank_sites(const SiteMap& map, cudaStream_t stream);

struct Cell {
  uint32_t unit;
  int word;
  int bit;
};

__device__ inline Cell cell_at(int64_t key) {
  const uint32_t word = static_cast<uint32_t>(key >> 5);
  const uint32_t unit = word / 3;
  return {unit, static_cast<int>(word - unit * 3), static_cast<int>(key & 31)};
}

__device__ inline int64_t key_at(const GridView& g, int n, int a, int b, int c) {
  return ((int64_t{n} * g.a + a) * g.b + b) * g.c + c;
}

// Rank of a cell given its unit, or -1.
__device__ inline int rank_in(const uint4& unit, int word, int bit) {
  const uint32_t bits = word == 0 ? unit.y : word == 1 ? unit.z : unit.w;
  if (!(bits >> bit & 1u)) return -1;
  int rank = static_cast<int>(unit.x) + __popc(bits & ((1u << bit) - 1u));
  if (word > 0) rank += __popc(unit.y);
  if (word > 1) rank += __popc(unit.z);
  return rank;
}

__device__ inline int rank_of(const MapView& map, int64_t key) {
  const Cell cell = cell_at(key);
  return rank_in(__ldg(map.units + cell.unit), cell.word, cell.bit);
}

__device__ inline int4 row_of(const GridView& g, int64_t key) {
  int4 row;
  // Nearly every key fits 32 bits, where divisions are cheap.
  if (key >> 32 == 0) {
    uint32_t rest = static_cast<uint32_t>(key);
    row.w = static_cast<int>(rest % static_cast<uint32_t>(g.c));
    rest /= static_cast<uint32_t>(g.c);
    row.z = static_cast<int>(rest % static_cast<uint32_t>(g.b));
    rest /= static_cast<uint32_t>(g.b);
    row.y = static_cast<int>(rest % static_cast<uint32_t>(g.a));
    row.x = static_cast<int>(rest / static_cast<uint32_t>(g.a));
  } else {
    row.w = static_cast<int>(key % g.c);
    key /= g.c;
    row.z = static_cast<int>(key % g.b);
    key /= g.b;
    row.y = static_cast<int>(key % g.a);
    row.x = static_cast<int>(key / g.a);
  }
  return row;
}

__device__ inline bool inside(const GridView& g, const int4& r) {
  return r.x >= 0 && r.x < g.batch && r.y >= 0 && r.y < g.a && r.z >= 0 && r.z < g.b &&
         r.w >= 0 && r.w < g.c;
}

// Sets a cell's bit; true if it was not set before.
__device__ inline bool mark(const MapView& map, int64_t key) {
  const Cell cell = cell_at(key);
  uint32_t* words = reinterpret_cast<uint32_t*>(map.units + cell.unit);
  const uint32_t bit = 1u << cell.bit;
  if (atomicOr(words + 1 + cell.word, bit) & bit) return false;
  atomicAdd(map.spans + (cell.unit >> map.span_shift), 1);
  return true;
}

// Exclusive sum over the threads of a block, in thread order; `total` is that of all. `warps` is
// shared, 33 int. Ends with a barrier passed by all.
__device__ inline int block_sum(int value, int* warps, int* total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int number = (blockDim.x + 31) >> 5;
  int sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // the last call's reads of warps[]
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    int all = lane < number ? warps[lane] : 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, all, step);
      if (lane >= step) all += other;
    }
    warps[lane] = all;
  }
  __syncthreads();
  *total = warps[number - 1];
  return sum - value + (warp ? warps[warp - 1] : 0);
}

}  // namespace s4d::sparse::cuda
