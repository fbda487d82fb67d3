// Ranks the cells of marked maps and lists them in order.
#include "site_map_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;

// before[i] = sites before span i, for maps with very many spans; one block.
__global__ void __launch_bounds__(1024) sum_spans_kernel(MapView map, int32_t* before) {
  __shared__ int warps[33];
  int carry = 0;
  for (uint32_t first = 0; first < map.number_of_spans; first += blockDim.x) {
    const uint32_t i = first + threadIdx.x;
    const int value = i < map.number_of_spans ? map.spans[i] : 0;
    int total;
    const int sum = block_sum(value, warps, &total) + carry;
    if (i < map.number_of_spans) before[i] = sum;
    carry += total;
  }
}

struct Lists {
  MapView map[kMaxChain];
  const int32_t* before[kMaxChain];  // null: the block sums the spans before its own
  int4* rows[kMaxChain];             // may be null
  int32_t capacity[kMaxChain];
  uint32_t first_block[kMaxChain];
  int number;
};

// Position of the set bit of `word` that has `rank` set bits below it.
__device__ int select_bit(uint32_t word, int rank) {
  int at = 0;
#pragma unroll
  for (int width = 16; width > 0; width /= 2) {
    const int below = __popc(word >> at & ((1u << width) - 1u));
    if (rank >= below) {
      rank -= below;
      at += width;
    }
  }
  return at;
}

// One block per span: ranks its units and lists its sites.
__global__ void __launch_bounds__(kThreads) list_kernel(const __grid_constant__ Lists lists,
                                                        int32_t* errors) {
  __shared__ int warps[33];
  __shared__ int offset[kThreads];
  __shared__ uint32_t words[3][kThreads];
  int which = 0;
  while (which + 1 < lists.number && blockIdx.x >= lists.first_block[which + 1]) ++which;
  const MapView& map = lists.map[which];
  const uint32_t span = blockIdx.x - lists.first_block[which];
  const int32_t capacity = lists.capacity[which];
  const int sites = map.spans[span];
  const bool last = span + 1 == map.number_of_spans;
  if (sites == 0 && !last) return;

  int row = 0;
  if (lists.before[which]) {
    row = lists.before[which][span];
  } else {
    int part = 0;
    for (uint32_t i = threadIdx.x; i < span; i += kThreads) part += map.spans[i];
    block_sum(part, warps, &row);
  }
  if (last && threadIdx.x == 0) {
    const int count = row + sites;
    *map.count = count;
    if (errors && count > capacity) atomicAdd(errors + kRowsLost, count - capacity);
  }

  const uint32_t units = 1u << map.span_shift;
  for (uint32_t at = 0; at < units; at += kThreads) {
    const uint32_t first = (span << map.span_shift) + at, unit = first + threadIdx.x;
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (at + threadIdx.x < units && unit < map.number_of_units) bits = map.units[unit];
    const int mine = __popc(bits.y) + __popc(bits.z) + __popc(bits.w);
    int total;
    const int before = block_sum(mine, warps, &total);
    if (mine > 0) map.units[unit].x = static_cast<uint32_t>(row + before);
    if (lists.rows[which] && total > 0) {
      // Sites are dealt to threads evenly: many units are empty, some are full.
      offset[threadIdx.x] = before;
      words[0][threadIdx.x] = bits.y;
      words[1][threadIdx.x] = bits.z;
      words[2][threadIdx.x] = bits.w;
      __syncthreads();
      for (int site = threadIdx.x; site < total && row + site < capacity; site += kThreads) {
        int u = 0;  // the last unit whose sites begin at or before this one
#pragma unroll
        for (int step = kThreads / 2; step > 0; step /= 2) {
          if (offset[u + step] <= site) u += step;
        }
        int rank = site - offset[u], word = 0;
        for (; word < 2; ++word) {
          const int here = __popc(words[word][u]);
          if (rank < here) break;
          rank -= here;
        }
        const int64_t key = int64_t{first + u} * kCellsPerUnit + word * 32 +
                            select_bit(words[word][u], rank);
        lists.rows[which][row + site] = row_of(map.grid, key);
      }
    }
    row += total;
  }
}

}  // namespace

cudaError_t list_sites(const SiteLevel* levels, int number, int32_t* errors, cudaStream_t stream) {
  Lists lists;
  lists.number = number;
  uint32_t blocks = 0;
  for (int i = 0; i < number; ++i) {
    const MapView map = view_of(levels[i].map);
    lists.map[i] = map;
    lists.before[i] = nullptr;
    lists.rows[i] = reinterpret_cast<int4*>(levels[i].indices);
    lists.capacity[i] = static_cast<int32_t>(levels[i].indices ? levels[i].capacity : INT32_MAX);
    lists.first_block[i] = blocks;
    blocks += map.number_of_spans;
    if (map.number_of_spans > kSpansToSum) {
      const int64_t bytes = site_map_bytes(levels[i].map.grid);
      int32_t* before = reinterpret_cast<int32_t*>(static_cast<char*>(levels[i].map.memory) +
                                                   bytes) - int64_t{map.number_of_spans + 3} / 4 * 4;
      sum_spans_kernel<<<1, 1024, 0, stream>>>(map, before);
      lists.before[i] = before;
    }
  }
  list_kernel<<<blocks, kThreads, 0, stream>>>(lists, errors);
  return cudaGetLastError();
}

cudaError_t rank_sites(const SiteMap& map, cudaStream_t stream) {
  SiteLevel level;
  level.map = map;
  return list_sites(&level, 1, nullptr, stream);
}

}  // namespace s4d::sparse::cuda
