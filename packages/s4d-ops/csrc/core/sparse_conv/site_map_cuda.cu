#include <algorithm>

#include "site_map_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kSpans = 4096;        // aimed at: enough blocks to list with

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

// Marks the cells of level first_level + blockIdx.y that depend on a row of level `from`. With kernels
// no smaller than their strides and no dilation those are a box, whatever the number of levels
// between.
__global__ void mark_chain_kernel(const int4* rows, const int32_t* count, int32_t capacity,
                                  const __grid_constant__ Chain chain, int from, int first_level,
                                  int32_t* errors) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= min(*count, capacity)) return;
  const int4 r = rows[i];
  const int target = first_level + static_cast<int>(blockIdx.y);
  if (from == 0 && !inside(chain.map[0].grid, r)) {
    if (errors && target == 0) atomicAdd(errors + kRowsOutside, 1);
    return;
  }
  int low[3] = {r.y, r.z, r.w}, high[3] = {r.y, r.z, r.w};
  for (int level = from + 1; level <= target; ++level) {
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
  const MapView& map = chain.map[target];
  for (int a = low[0]; a <= high[0]; ++a) {
    for (int b = low[1]; b <= high[1]; ++b) {
      for (int c = low[2]; c <= high[2]; ++c) {
        const int64_t key = key_at(map.grid, r.x, a, b, c);
        if (target > 0) {
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

// Levels first_level on of a chain of boxes, whose maps are clear.
cudaError_t build_boxes(const int32_t* indices, const int32_t* count, int64_t capacity,
                        const SiteLevel* levels, int first_level, int number_of_levels,
                        int32_t* errors, cudaStream_t stream) {
  Chain chain;
  for (int i = 0; i < number_of_levels; ++i) {
    chain.map[i] = view_of(levels[i].map);
    chain.geometry[i] = levels[i].geometry;
  }
  // A row of level 0 has few cells at the next levels and many later on, where fewer rows do.
  constexpr int kLevelsAtOnce = 2;
  int from = 0;
  for (int level = first_level; level < number_of_levels;) {
    const int end = std::min(number_of_levels, from + kLevelsAtOnce + 1);
    if (capacity > 0) {
      const dim3 grid(blocks_for(capacity), end - level);
      mark_chain_kernel<<<grid, kThreads, 0, stream>>>(reinterpret_cast<const int4*>(indices),
                                                       count, static_cast<int32_t>(capacity),
                                                       chain, from, level, errors);
    }
    const cudaError_t error = list_sites(levels + level, end - level, errors, stream);
    if (error != cudaSuccess) return error;
    from = end - 1;
    level = end;
    indices = levels[from].indices;
    count = levels[from].map.count;
    capacity = levels[from].capacity;
  }
  return cudaSuccess;
}

cudaError_t clear(const SiteLevel& level, cudaStream_t stream) {
  return cudaMemsetAsync(level.map.memory, 0, site_map_bytes(level.map.grid), stream);
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
      const cudaError_t error = clear(levels[i], stream);
      if (error != cudaSuccess) return error;
    }
  }
  if (number_of_levels <= kMaxChain && boxes(levels, number_of_levels)) {
    return build_boxes(indices, count, capacity, levels, 0, number_of_levels, errors, stream);
  }
  cudaError_t error = build_sites(indices, count, capacity, levels, 1, true, errors, stream);
  for (int i = 1; i < number_of_levels && error == cudaSuccess; ++i) {
    const SiteLevel& from = levels[i - 1];
    error = strided_sites(from.indices, from.map.count, from.capacity, levels[i], true, errors,
                          stream);
  }
  return error;
}

cudaError_t extend_sites(const int32_t* indices, const int32_t* count, int64_t capacity,
                         const SiteLevel* levels, int number_of_levels, bool cleared,
                         int32_t* errors, cudaStream_t stream) {
  if (number_of_levels < 2 || number_of_levels > kMaxChain || capacity < 0 ||
      capacity > INT32_MAX / 4 || site_map_bytes(levels[0].map.grid) == 0) {
    return cudaErrorInvalidValue;
  }
  for (int i = 1; i < number_of_levels; ++i) {
    if (!good(levels[i]) || !good(levels[i].geometry) ||
        (i + 1 < number_of_levels && !levels[i].indices)) {
      return cudaErrorInvalidValue;
    }
  }
  if (!boxes(levels, number_of_levels)) return cudaErrorInvalidValue;
  for (int i = 1; i < number_of_levels && !cleared; ++i) {
    const cudaError_t error = clear(levels[i], stream);
    if (error != cudaSuccess) return error;
  }
  return build_boxes(indices, count, capacity, levels, 1, number_of_levels, errors, stream);
}

cudaError_t strided_sites(const int32_t* indices, const int32_t* count, int64_t capacity,
                          const SiteLevel& level, bool cleared, int32_t* errors,
                          cudaStream_t stream) {
  if (!good(level) || !good(level.geometry) || capacity < 0 || capacity > INT32_MAX / 4) {
    return cudaErrorInvalidValue;
  }
  if (!cleared) {
    const cudaError_t error = clear(level, stream);
    if (error != cudaSuccess) return error;
  }
  const Window window = window_of(level.geometry);
  if (capacity > 0) {
    mark_strided_kernel<<<blocks_for(capacity * window.most), kThreads, 0, stream>>>(
        reinterpret_cast<const int4*>(indices), count, static_cast<int32_t>(capacity), window,
        view_of(level.map));
  }
  return list_sites(&level, 1, errors, stream);
}

}  // namespace s4d::sparse::cuda
