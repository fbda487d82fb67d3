#include "site_map_cuda.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kScanBlock = 1024;  // words per block of the scan

int blocks_for(int64_t items, int per_block) {
  return static_cast<int>((items + per_block - 1) / per_block);
}

__global__ void mark_rows_kernel(const int4* rows, const int32_t* count, SiteMap map,
                                 int32_t* errors) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= *count) return;
  const int4 r = rows[i];
  const GridView& g = map.grid;
  const bool inside = r.x >= 0 && r.x < g.batch && r.y >= 0 && r.y < g.a && r.z >= 0 &&
                      r.z < g.b && r.w >= 0 && r.w < g.c;
  if (!inside) {
    atomicAdd(errors, 1);
    return;
  }
  const int64_t key = key_of(g, r.x, r.y, r.z, r.w);
  const unsigned long long bit = 1ull << (key & 63);
  if (atomicOr(map.bits + (key >> 6), bit) & bit) atomicAdd(errors + 1, 1);
}

// One thread per (row, offset): a window of the output cells that read the row.
__global__ void mark_strided_kernel(const int4* rows, const int32_t* count, SiteMap out,
                                    GeometryView geo) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int volume = geo.volume();
  const int64_t i = at / volume;
  if (i >= *count) return;
  int k = static_cast<int>(at % volume);
  const int4 r = rows[i];
  const int position[3] = {r.y, r.z, r.w};
  const int size[3] = {out.grid.a, out.grid.b, out.grid.c};
  int cell[3];
  for (int axis = 2; axis >= 0; --axis) {
    const int offset = k % geo.kernel[axis];
    k /= geo.kernel[axis];
    const int scaled = position[axis] + geo.padding[axis] - offset * geo.dilation[axis];
    if (scaled < 0 || scaled % geo.stride[axis] != 0) return;
    cell[axis] = scaled / geo.stride[axis];
    if (cell[axis] >= size[axis]) return;
  }
  const int64_t key = key_of(out.grid, r.x, cell[0], cell[1], cell[2]);
  const unsigned long long bit = 1ull << (key & 63);
  // Most cells are marked by several rows: look before taking the atomic.
  if (!(out.bits[key >> 6] & bit)) atomicOr(out.bits + (key >> 6), bit);
}

__device__ int block_scan(int value, int* warps) {  // exclusive, over the 1024 threads of a block
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    int total = lane < static_cast<int>(blockDim.x >> 5) ? warps[lane] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, total, step);
      if (lane >= step) total += other;
    }
    warps[lane] = total;
  }
  __syncthreads();
  return sum - value + (warp ? warps[warp - 1] : 0);
}

__global__ void __launch_bounds__(kScanBlock) count_kernel(SiteMap map, int32_t* totals) {
  __shared__ int warps[32];
  const int64_t word = int64_t{blockIdx.x} * kScanBlock + threadIdx.x;
  const int value = word < map.grid.words() ? __popcll(map.bits[word]) : 0;
  const int before = block_scan(value, warps);
  if (word < map.grid.words()) map.before[word] = before;
  if (threadIdx.x == kScanBlock - 1) totals[blockIdx.x] = before + value;
}

__global__ void __launch_bounds__(kScanBlock) totals_kernel(int32_t* totals, int blocks,
                                                            int32_t* count) {
  __shared__ int warps[32];
  __shared__ int carry;
  if (threadIdx.x == 0) carry = 0;
  __syncthreads();
  for (int first = 0; first < blocks; first += kScanBlock) {
    const int i = first + static_cast<int>(threadIdx.x);
    const int value = i < blocks ? totals[i] : 0;
    const int before = block_scan(value, warps) + carry;
    if (i < blocks) totals[i] = before;
    __syncthreads();
    if (threadIdx.x == kScanBlock - 1) carry = before + value;
    __syncthreads();
  }
  if (threadIdx.x == 0) *count = carry;
}

__global__ void __launch_bounds__(kScanBlock) shift_kernel(SiteMap map, const int32_t* totals) {
  const int64_t word = int64_t{blockIdx.x} * kScanBlock + threadIdx.x;
  if (word < map.grid.words()) map.before[word] += totals[blockIdx.x];
}

__global__ void list_kernel(SiteMap map, int4* rows, int64_t capacity) {
  const int64_t word = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (word >= map.grid.words()) return;
  unsigned long long bits = map.bits[word];
  int64_t row = map.before[word];
  for (; bits && row < capacity; ++row, bits &= bits - 1) {
    int64_t key = word * 64 + __ffsll(static_cast<long long>(bits)) - 1;
    int4 r;
    r.w = static_cast<int>(key % map.grid.c);
    key /= map.grid.c;
    r.z = static_cast<int>(key % map.grid.b);
    key /= map.grid.b;
    r.y = static_cast<int>(key % map.grid.a);
    r.x = static_cast<int>(key / map.grid.a);
    rows[row] = r;
  }
}

__global__ void order_kernel(const int4* rows, const int32_t* count, SiteMap map, int32_t* order) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= *count) return;
  const int4 r = rows[i];
  order[map.rank(key_of(map.grid, r.x, r.y, r.z, r.w))] = static_cast<int32_t>(i);
}

__global__ void table_kernel(const int4* rows, const int32_t* count, int64_t capacity, SiteMap in,
                             GeometryView geo, int32_t* table) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= capacity) return;
  const int k = static_cast<int>(blockIdx.y);
  int32_t found = -1;
  if (row < *count) {
    const int4 r = rows[row];
    const int a = r.y * geo.stride[0] - geo.padding[0] +
                  k / (geo.kernel[1] * geo.kernel[2]) * geo.dilation[0];
    const int b = r.z * geo.stride[1] - geo.padding[1] +
                  k / geo.kernel[2] % geo.kernel[1] * geo.dilation[1];
    const int c = r.w * geo.stride[2] - geo.padding[2] + k % geo.kernel[2] * geo.dilation[2];
    const GridView& g = in.grid;
    if (a >= 0 && a < g.a && b >= 0 && b < g.b && c >= 0 && c < g.c) {
      found = in.rank(key_of(g, r.x, a, b, c));
    }
  }
  table[int64_t{k} * capacity + row] = found;
}

}  // namespace

cudaError_t mark_rows(const int32_t* indices, const int32_t* count, int64_t capacity, SiteMap map,
                      int32_t* errors, cudaStream_t stream) {
  cudaMemsetAsync(map.bits, 0, map.grid.words() * 8, stream);
  if (capacity == 0) return cudaGetLastError();
  mark_rows_kernel<<<blocks_for(capacity, kThreads), kThreads, 0, stream>>>(
      reinterpret_cast<const int4*>(indices), count, map, errors);
  return cudaGetLastError();
}

cudaError_t mark_strided(const int32_t* indices, const int32_t* count, int64_t capacity,
                         SiteMap out, GeometryView geometry, cudaStream_t stream) {
  cudaMemsetAsync(out.bits, 0, out.grid.words() * 8, stream);
  if (capacity == 0) return cudaGetLastError();
  mark_strided_kernel<<<blocks_for(capacity * geometry.volume(), kThreads), kThreads, 0, stream>>>(
      reinterpret_cast<const int4*>(indices), count, out, geometry);
  return cudaGetLastError();
}

cudaError_t rank_sites(SiteMap map, int32_t* scratch, cudaStream_t stream) {
  const int blocks = blocks_for(map.grid.words(), kScanBlock);
  count_kernel<<<blocks, kScanBlock, 0, stream>>>(map, scratch);
  totals_kernel<<<1, kScanBlock, 0, stream>>>(scratch, blocks, map.count);
  shift_kernel<<<blocks, kScanBlock, 0, stream>>>(map, scratch);
  return cudaGetLastError();
}

cudaError_t list_sites(SiteMap map, int32_t* indices, int64_t capacity, cudaStream_t stream) {
  list_kernel<<<blocks_for(map.grid.words(), kThreads), kThreads, 0, stream>>>(
      map, reinterpret_cast<int4*>(indices), capacity);
  return cudaGetLastError();
}

cudaError_t order_rows(const int32_t* indices, const int32_t* count, int64_t capacity, SiteMap map,
                       int32_t* order, cudaStream_t stream) {
  if (capacity == 0) return cudaSuccess;
  order_kernel<<<blocks_for(capacity, kThreads), kThreads, 0, stream>>>(
      reinterpret_cast<const int4*>(indices), count, map, order);
  return cudaGetLastError();
}

cudaError_t build_table(const int32_t* out_indices, const int32_t* out_count, int64_t capacity,
                        SiteMap in, GeometryView geometry, int32_t* table, cudaStream_t stream) {
  if (capacity == 0) return cudaSuccess;
  const dim3 grid(blocks_for(capacity, kThreads), geometry.volume());
  table_kernel<<<grid, kThreads, 0, stream>>>(reinterpret_cast<const int4*>(out_indices),
                                              out_count, capacity, in, geometry, table);
  return cudaGetLastError();
}

}  // namespace s4d::sparse::cuda
