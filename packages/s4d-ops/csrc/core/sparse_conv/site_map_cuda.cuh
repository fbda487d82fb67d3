// Active cells of a grid on the device: one bit per cell, and per 64-cell word the number of active
// cells before it. The rank of a cell is its row in sorted order, so rows come out sorted by
// (batch, axis 0, axis 1, axis 2) without a sort and the same in every run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace s4d::sparse::cuda {

struct GridView {
  int32_t batch, a, b, c;
  __host__ __device__ int64_t cells() const { return int64_t{batch} * a * b * c; }
  __host__ __device__ int64_t words() const { return (cells() + 63) / 64; }
};

struct SiteMap {
  GridView grid;
  unsigned long long* bits;  // (words)
  int32_t* before;           // (words)
  int32_t* count;            // (1), number of active cells, stays on the device

  __device__ int32_t rank(int64_t key) const {
    const unsigned long long word = bits[key >> 6];
    const int shift = static_cast<int>(key & 63);
    if (!((word >> shift) & 1)) return -1;
    return before[key >> 6] + __popcll(word & ((1ull << shift) - 1));
  }
};

__device__ inline int64_t key_of(const GridView& g, int n, int a, int b, int c) {
  return ((int64_t{n} * g.a + a) * g.b + b) * g.c + c;
}

struct GeometryView {
  int32_t kernel[3], stride[3], padding[3], dilation[3];
  __host__ __device__ int volume() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// errors[0]: rows outside the grid, errors[1]: rows that appear twice.
cudaError_t mark_rows(const int32_t* indices, const int32_t* count, int64_t capacity, SiteMap map,
                      int32_t* errors, cudaStream_t stream);
cudaError_t mark_strided(const int32_t* indices, const int32_t* count, int64_t capacity,
                         SiteMap out, GeometryView geometry, cudaStream_t stream);
// Fills before[] and count. `scratch` holds (words + 1023) / 1024 + 1 int32.
cudaError_t rank_sites(SiteMap map, int32_t* scratch, cudaStream_t stream);
// Rows of all active cells in order; at most `capacity`, count[0] says how many there are.
cudaError_t list_sites(SiteMap map, int32_t* indices, int64_t capacity, cudaStream_t stream);
// order[rank] = input row.
cudaError_t order_rows(const int32_t* indices, const int32_t* count, int64_t capacity, SiteMap map,
                       int32_t* order, cudaStream_t stream);
// table (volume, capacity): input row of each output row at each offset, or -1. Submanifold:
// stride 1 and padding = kernel / 2 * dilation.
cudaError_t build_table(const int32_t* out_indices, const int32_t* out_count, int64_t capacity,
                        SiteMap in, GeometryView geometry, int32_t* table, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
