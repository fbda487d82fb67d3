#include "site_map_device.cuh"

#include "convolution_cuda.h"
#include "rows_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kSpans = 4096;        // aimed at: enough blocks to list with
constexpr int kMaxChain = 8;            // levels that one launch works on
constexpr int64_t kSpansToSum = 16384;  // beyond this the spans are summed by a kernel of their own

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

unsigned blocks_for(int64_t items, int64_t per_block = kThreads) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// Output cells of an input cell: at most `most` of them, numbered in any order.
struct Window {
  GeometryView geometry;
  int axis[3];  // outputs per axis at most: ceil(kernel / stride) where dilation is 1
  int most;
};

Window window_of(const GeometryView& g) {
  Window w{g, {}, 1};
  for (int i = 0; i < 3; ++i) {
    w.axis[i] = g.dilation[i] == 1 ? (g.kernel[i] + g.stride[i] - 1) / g.stride[i] : g.kernel[i];
    w.most *= w.axis[i];
  }
  return w;
}

// Marks output cell `number` of the window of `row`, if there is such a cell.
__device__ void mark_window(const int4& row, int number, const Window& window, const MapView& out) {
  const GeometryView& g = window.geometry;
  const int at[3] = {row.y, row.z, row.w};
  const int size[3] = {out.grid.a, out.grid.b, out.grid.c};
  int cell[3];
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    const int i = number % window.axis[axis];
    number /= window.axis[axis];
    const int shifted = at[axis] + g.padding[axis];
    if (g.dilation[axis] == 1) {
      cell[axis] = shifted / g.stride[axis] - i;  // the kernel offset grows with i
      if (cell[axis] < 0 || shifted - cell[axis] * g.stride[axis] >= g.kernel[axis]) return;
    } else {
      const int scaled = shifted - i * g.dilation[axis];
      if (scaled < 0 || scaled % g.stride[axis] != 0) return;
      cell[axis] = scaled / g.stride[axis];
    }
    if (cell[axis] >= size[axis]) return;
  }
  mark(out, key_at(out.grid, row.x, cell[0], cell[1], cell[2]));
}

__global__ void mark_strided_kernel(const int4* rows, const int32_t* count, int32_t capacity,
                                    Window window, MapView out) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t i = at / window.most;
  if (i >= min(*count, capacity)) return;
  mark_window(rows[i], static_cast<int>(at % window.most), window, out);
}

// A chain of levels, for kernels that work on all of them at once.
struct Chain {
  MapView map[kMaxChain];
  GeometryView geometry[kMaxChain];  // from the level before
};

// Marks the cells of level blockIdx.y that depend on a row of level 0. With kernels no smaller than
// their strides and no dilation those are a box, whatever the number of levels between.
__global__ void mark_chain_kernel(const int4* rows, const int32_t* count, int32_t capacity,
                                  const __grid_constant__ Chain chain, int32_t* errors) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= min(*count, capacity)) return;
  const int4 r = rows[i];
  if (!inside(chain.map[0].grid, r)) {
    if (errors && blockIdx.y == 0) atomicAdd(errors + kRowsOutside, 1);
    return;
  }
  int low[3] = {r.y, r.z, r.w}, high[3] = {r.y, r.z, r.w};
  for (int level = 1; level <= static_cast<int>(blockIdx.y); ++level) {
    const GeometryView& g = chain.geometry[level];
    const GridView& grid = chain.map[level].grid;
    const int size[3] = {grid.a, grid.b, grid.c};
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      // Outputs of position p: from ceil((p + padding - kernel + 1) / stride) on.
      const int first = low[axis] + g.padding[axis] - g.kernel[axis] + g.stride[axis];
      low[axis] = first < 0 ? 0 : first / g.stride[axis];
      high[axis] = min((high[axis] + g.padding[axis]) / g.stride[axis], size[axis] - 1);
    }
  }
  const MapView& map = chain.map[blockIdx.y];
  for (int a = low[0]; a <= high[0]; ++a) {
    for (int b = low[1]; b <= high[1]; ++b) {
      for (int c = low[2]; c <= high[2]; ++c) {
        const int64_t key = key_at(map.grid, r.x, a, b, c);
        if (blockIdx.y > 0) {
          // Most cells of later levels are marked by many rows: look first.
          const Cell cell = cell_at(key);
          const uint32_t* word = reinterpret_cast<const uint32_t*>(map.units + cell.unit) + 1;
          if (!(__ldcg(word + cell.word) >> cell.bit & 1u)) mark(map, key);
        } else if (!mark(map, key) && errors) {
          atomicAdd(errors + kRowsTwice, 1);
        }
      }
    }
  }
}

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

template <class From, class To>
__global__ void place_kernel(PlaceTask task, MapView map, int padded) {
  // A thread moves `kPiece` channels of one row.
  constexpr int kPiece = 16 / sizeof(To) < 8 ? 16 / sizeof(To) : 8;
  const int pieces = padded / kPiece;
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t i = at / pieces;
  if (i >= min(int64_t{*task.count}, task.capacity)) return;
  const int piece = static_cast<int>(at % pieces);
  const int4 r = reinterpret_cast<const int4*>(task.indices)[i];
  if (!inside(map.grid, r)) return;
  const int rank = rank_of(map, key_at(map.grid, r.x, r.y, r.z, r.w));
  if (rank < 0 || rank >= task.capacity) return;
  if (task.order && piece == 0) task.order[rank] = static_cast<int32_t>(i);
  if (!task.out) return;
  const From* from = static_cast<const From*>(task.features) + i * task.channels;
  To* to = static_cast<To*>(task.out) + int64_t{rank} * padded;
#pragma unroll
  for (int j = 0; j < kPiece; ++j) {
    const int c = piece * kPiece + j;
    store_value(to + c, c < task.channels ? value_of(from[c]) : 0.0f, task.out_range);
  }
}

// Ranks and lists marked maps.
cudaError_t list(const SiteLevel* levels, int number, int32_t* errors, cudaStream_t stream) {
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
                                                   bytes) - round_up(map.number_of_spans, 4);
      sum_spans_kernel<<<1, 1024, 0, stream>>>(map, before);
      lists.before[i] = before;
    }
  }
  list_kernel<<<blocks, kThreads, 0, stream>>>(lists, errors);
  return cudaGetLastError();
}

// Whether the cells that depend on one cell are a box at every level.
bool boxes(const SiteLevel* levels, int number) {
  for (int i = 1; i < number; ++i) {
    const GeometryView& g = levels[i].geometry;
    for (int axis = 0; axis < 3; ++axis) {
      if (g.dilation[axis] != 1 || g.kernel[axis] < g.stride[axis]) return false;
    }
  }
  return true;
}

bool good(const SiteLevel& level) {
  return site_map_bytes(level.map.grid) > 0 && level.map.memory && level.map.count &&
         level.capacity >= 0 && level.capacity <= INT32_MAX / 4;
}

bool good(const GeometryView& g) {
  for (int i = 0; i < 3; ++i) {
    if (g.kernel[i] < 1 || g.stride[i] < 1 || g.dilation[i] < 1 || g.padding[i] < 0) return false;
  }
  return true;
}

}  // namespace

MapView view_of(const SiteMap& map) {
  MapView v{};
  v.grid = map.grid;
  v.number_of_units =
      static_cast<uint32_t>((cells_of(map.grid) + kCellsPerUnit - 1) / kCellsPerUnit);
  v.span_shift = 5;
  while (v.span_shift < 10 && (int64_t{v.number_of_units} >> v.span_shift) > kSpans) {
    ++v.span_shift;
  }
  v.number_of_spans = static_cast<uint32_t>((int64_t{v.number_of_units} +
                                             (int64_t{1} << v.span_shift) - 1) >> v.span_shift);
  v.units = static_cast<uint4*>(map.memory);
  v.spans = reinterpret_cast<int32_t*>(v.units + v.number_of_units);
  v.count = map.count;
  return v;
}

int64_t site_map_bytes(const GridView& grid) {
  if (grid.batch < 1 || grid.a < 1 || grid.b < 1 || grid.c < 1) return 0;
  if (static_cast<double>(grid.batch) * grid.a * grid.b * grid.c > static_cast<double>(kMaxCells)) {
    return 0;
  }
  SiteMap map;
  map.grid = grid;
  const MapView v = view_of(map);
  int64_t spans = round_up(v.number_of_spans, 4);
  if (v.number_of_spans > kSpansToSum) spans *= 2;  // and the sites before each
  return round_up(int64_t{v.number_of_units} * 16 + spans * 4, 256);
}

cudaError_t build_sites(const int32_t* indices, const int32_t* count, int64_t capacity,
                        const SiteLevel* levels, int number_of_levels, bool cleared,
                        int32_t* errors, cudaStream_t stream) {
  if (number_of_levels < 1 || capacity < 0 || capacity > INT32_MAX / 4) {
    return cudaErrorInvalidValue;
  }
  for (int i = 0; i < number_of_levels; ++i) {
    if (!good(levels[i]) || (i > 0 && !good(levels[i].geometry)) ||
        (i + 1 < number_of_levels && !levels[i].indices)) {
      return cudaErrorInvalidValue;
    }
    if (!cleared) {
      const cudaError_t error = cudaMemsetAsync(levels[i].map.memory, 0,
                                                site_map_bytes(levels[i].map.grid), stream);
      if (error != cudaSuccess) return error;
    }
  }
  if (number_of_levels <= kMaxChain && boxes(levels, number_of_levels)) {
    Chain chain;
    for (int i = 0; i < number_of_levels; ++i) {
      chain.map[i] = view_of(levels[i].map);
      chain.geometry[i] = levels[i].geometry;
    }
    if (capacity > 0) {
      mark_chain_kernel<<<dim3(blocks_for(capacity), number_of_levels), kThreads, 0, stream>>>(
          reinterpret_cast<const int4*>(indices), count, static_cast<int32_t>(capacity), chain,
          errors);
    }
    return list(levels, number_of_levels, errors, stream);
  }
  cudaError_t error = build_sites(indices, count, capacity, levels, 1, true, errors, stream);
  for (int i = 1; i < number_of_levels && error == cudaSuccess; ++i) {
    const SiteLevel& from = levels[i - 1];
    error = strided_sites(from.indices, from.map.count, from.capacity, levels[i], true, errors,
                          stream);
  }
  return error;
}

cudaError_t strided_sites(const int32_t* indices, const int32_t* count, int64_t capacity,
                          const SiteLevel& level, bool cleared, int32_t* errors,
                          cudaStream_t stream) {
  if (!good(level) || !good(level.geometry) || capacity < 0 || capacity > INT32_MAX / 4) {
    return cudaErrorInvalidValue;
  }
  if (!cleared) {
    const cudaError_t error =
        cudaMemsetAsync(level.map.memory, 0, site_map_bytes(level.map.grid), stream);
    if (error != cudaSuccess) return error;
  }
  const Window window = window_of(level.geometry);
  if (capacity > 0) {
    mark_strided_kernel<<<blocks_for(capacity * window.most), kThreads, 0, stream>>>(
        reinterpret_cast<const int4*>(indices), count, static_cast<int32_t>(capacity), window,
        view_of(level.map));
  }
  return list(&level, 1, errors, stream);
}

cudaError_t rank_sites(const SiteMap& map, cudaStream_t stream) {
  SiteLevel level;
  level.map = map;
  return list(&level, 1, nullptr, stream);
}

cudaError_t place_rows(const PlaceTask& task, cudaStream_t stream) {
  if (task.capacity < 0 || (task.out && (!task.features || task.channels < 1))) {
    return cudaErrorInvalidValue;
  }
  if (task.capacity == 0) return cudaSuccess;
  const int padded = task.out ? padded_channels(task.out_type, task.channels) : 8;
  if (padded == 0) return cudaErrorInvalidValue;
  const MapView map = view_of(task.map);
  return with_types(task.out ? task.type : DType::f16, task.out ? task.out_type : DType::f16,
                    [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    constexpr int piece = 16 / sizeof(To) < 8 ? 16 / sizeof(To) : 8;
    place_kernel<From, To><<<blocks_for(task.capacity * (padded / piece)), kThreads, 0, stream>>>(
        task, map, padded);
    return cudaGetLastError();
  });
}

}  // namespace s4d::sparse::cuda
