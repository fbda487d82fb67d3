#include "layout_cuda.h"

#include "convolution_launch.h"
#include "overlap.cuh"
#include "rows_device.cuh"
#include "site_map_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kCells = 64;     // of a dense tile
constexpr int kChannels = 64;

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>((items + kThreads - 1) / kThreads);
}

template <class From, class To>
__global__ void convert_kernel(ConvertTask task) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = at / task.to_stride;
  if (row >= min(int64_t{*task.count}, task.capacity)) return;
  const int c = static_cast<int>(at % task.to_stride);
  float value = 0.0f;
  if (c < task.channels) {
    const int64_t from = task.order ? task.order[row] : row;
    value = value_of(static_cast<const From*>(task.from.data)[from * task.from_stride + c],
                     task.from.range);
  }
  store_value(static_cast<To*>(const_cast<void*>(task.to.data)) + at, value, task.to.range);
}

__device__ float read(const Features& from, int64_t at) {
  switch (from.type) {
    case DType::f32: return static_cast<const float*>(from.data)[at];
    case DType::f16: return __half2float(static_cast<const __half*>(from.data)[at]);
    default: return value_of(static_cast<const int8_t*>(from.data)[at], from.range);
  }
}

__global__ void add_kernel(AddTask task, int a_stride, int b_stride, int out_stride) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = at / out_stride;
  if (row >= min(int64_t{*task.count}, task.capacity)) return;
  const int c = static_cast<int>(at % out_stride);
  float value = 0.0f;
  if (c < task.channels) {
    value = rounded(read(task.a, row * a_stride + c), task.a_range);
    if (task.b.data) value += rounded(read(task.b, row * b_stride + c), task.b_range);
    value = activated(value, task.activation, task.slope);
  }
  void* data = const_cast<void*>(task.output.data);
  switch (task.output.type) {
    case DType::f32: store_value(static_cast<float*>(data) + at, value, 0.0f); break;
    case DType::f16: store_value(static_cast<__half*>(data) + at, value, 0.0f); break;
    default: store_value(static_cast<int8_t*>(data) + at, value, task.output.range);
  }
}

template <class T, int kNumber>
struct alignas(sizeof(T) * kNumber) Vector {
  T values[kNumber];
};

struct DenseShape {
  int32_t size[3];   // A, B, C
  int64_t stride[3];  // of A, B, C in keys of the map
};

DenseShape shape_of(const GridView& g, const int32_t axes[3]) {
  const int32_t sizes[3] = {g.a, g.b, g.c};
  const int64_t strides[3] = {int64_t{g.b} * g.c, g.c, 1};
  DenseShape s{};
  for (int i = 0; i < 3; ++i) {
    s.size[i] = sizes[axes[i]];
    s.stride[i] = strides[axes[i]];
  }
  return s;
}

bool permutation(const int32_t axes[3]) {
  int seen = 0;
  for (int i = 0; i < 3; ++i) {
    if (axes[i] < 0 || axes[i] > 2) return false;
    seen |= 1 << axes[i];
  }
  return seen == 7;
}

// A block writes 64 cells along C of up to 64 channels, through shared memory: rows are read along
// channels, the dense map is written along cells, kVector of them at once.
template <class From, class To, int kVector>
__global__ void __launch_bounds__(kThreads) scatter_kernel(DenseTask task, MapView map,
                                                           DenseShape shape, int chunks) {
  __shared__ int source[kCells];
  __shared__ __align__(16) To tile[kChannels][kCells + 4];
  const int c0 = blockIdx.x * kCells;
  const int first_channel = static_cast<int>(blockIdx.z % chunks) * kChannels;
  const int batch = static_cast<int>(blockIdx.z / chunks);
  const int channels = min(kChannels, task.channels - first_channel);
  const int64_t plane = int64_t{shape.size[0]} * shape.size[1] * shape.size[2];
  allow_next_kernel();
  wait_for_kernels();
  // blockIdx.y runs over (A, B) and may exceed what a grid's axis holds.
  for (int64_t ab = blockIdx.y; ab < int64_t{shape.size[0]} * shape.size[1]; ab += gridDim.y) {
    const int64_t a = ab / shape.size[1], b = ab % shape.size[1];
    int row = -1;
    if (threadIdx.x < kCells && c0 + threadIdx.x < shape.size[2]) {
      const int64_t key = batch * (cells_of(map.grid) / map.grid.batch) + a * shape.stride[0] +
                          b * shape.stride[1] + (c0 + threadIdx.x) * shape.stride[2];
      row = rank_of(map, key);
      if (row >= task.capacity) row = -1;
      if (row >= 0 && task.order) row = task.order[row];
    }
    if (threadIdx.x < kCells) source[threadIdx.x] = row;
    const bool any = __syncthreads_or(row >= 0);
    if (!any && task.cleared) continue;
    if (any) {
      constexpr int kRun = 8;
      for (int i = threadIdx.x; i < kCells * (kChannels / kRun); i += kThreads) {
        const int cell = i % kCells, run = i / kCells * kRun;
        const int from = source[cell];
        if (run >= channels) break;
        float value[kRun] = {};
        if (from >= 0) {
          const From* features = static_cast<const From*>(task.features.data) +
                                 int64_t{from} * task.stride + first_channel + run;
          bool whole = false;
          if constexpr (sizeof(From) <= 2) {
            whole = task.stride % kRun == 0;
            if (whole) load_run(features, value, task.features.range / 127.0f);
          }
          if (!whole) {
#pragma unroll
            for (int k = 0; k < kRun; ++k) {
              if (run + k < channels) value[k] = value_of(features[k], task.features.range);
            }
          }
        }
#pragma unroll
        for (int k = 0; k < kRun; ++k) store_value(&tile[run + k][cell], value[k], 0.0f);
      }
      __syncthreads();
    }
    To* dense = static_cast<To*>(task.dense) +
                (int64_t{batch} * task.channels + first_channel) * plane +
                ab * shape.size[2] + c0;
    constexpr int kLanes = kCells / kVector;
    const int cell = threadIdx.x % kLanes * kVector;
    if (c0 + cell < shape.size[2]) {
      for (int c = threadIdx.x / kLanes; c < channels; c += kThreads / kLanes) {
        Vector<To, kVector> cells{};
        if (any) cells = *reinterpret_cast<const Vector<To, kVector>*>(&tile[c][cell]);
        *reinterpret_cast<Vector<To, kVector>*>(dense + c * plane + cell) = cells;
      }
    }
    __syncthreads();
  }
}

template <class T>
__global__ void gather_kernel(const T* dense, const int4* rows, const int32_t* count,
                              int64_t capacity, GridView grid, DenseShape shape, int3 axes,
                              int channels, T* out, int64_t stride) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= min(int64_t{*count}, capacity)) return;
  const int4 r = rows[row];
  const int at[3] = {r.y, r.z, r.w};
  const int64_t plane = int64_t{shape.size[0]} * shape.size[1] * shape.size[2];
  const int64_t cell = (int64_t{at[axes.x]} * shape.size[1] + at[axes.y]) * shape.size[2] +
                       at[axes.z];
  const int first = blockIdx.y * 8;
  for (int c = first; c < first + 8 && c < stride; ++c) {
    out[row * stride + c] = c < channels ? dense[(int64_t{r.x} * channels + c) * plane + cell]
                                         : T(0.0f);
  }
}

}  // namespace

cudaError_t convert_rows(const ConvertTask& task, cudaStream_t stream) {
  if (task.capacity < 0 || task.to_stride < task.channels || task.channels < 1) {
    return cudaErrorInvalidValue;
  }
  if (task.capacity == 0) return cudaSuccess;
  return with_types(task.from.type, task.to.type, [&](auto from, auto to) {
    convert_kernel<decltype(from), decltype(to)>
        <<<blocks_for(task.capacity * task.to_stride), kThreads, 0, stream>>>(task);
    return cudaGetLastError();
  });
}

cudaError_t add_rows(const AddTask& task, cudaStream_t stream) {
  const int a = padded_channels(task.a.type, task.channels);
  const int b = padded_channels(task.b.type, task.channels);
  const int out = padded_channels(task.output.type, task.channels);
  if (task.capacity < 0 || task.channels < 1 || a == 0 || b == 0 || out == 0) {
    return cudaErrorInvalidValue;
  }
  if (task.capacity == 0) return cudaSuccess;
  add_kernel<<<blocks_for(task.capacity * out), kThreads, 0, stream>>>(task, a, b, out);
  return cudaGetLastError();
}

cudaError_t scatter_dense(const DenseTask& task, cudaStream_t stream) {
  if (!permutation(task.axes) || task.channels < 1 || site_map_bytes(task.map.grid) == 0 ||
      (task.dense_type != DType::f32 && task.dense_type != DType::f16)) {
    return cudaErrorInvalidValue;
  }
  const DenseShape shape = shape_of(task.map.grid, task.axes);
  const MapView map = view_of(task.map);
  const Device device = current_device();
  if (device.error != cudaSuccess) return device.error;
  const int chunks = (task.channels + kChannels - 1) / kChannels;
  const int64_t lines = int64_t{shape.size[0]} * shape.size[1];
  if (int64_t{chunks} * map.grid.batch > 65535) return cudaErrorInvalidValue;
  const dim3 grid((shape.size[2] + kCells - 1) / kCells,
                  static_cast<unsigned>(lines < 65535 ? lines : 65535),
                  static_cast<unsigned>(chunks * map.grid.batch));
  return with_types(task.features.type, task.dense_type, [&](auto from, auto to) {
    using To = decltype(to);
    if constexpr (sizeof(To) > 1) {
      const bool wide = shape.size[2] % 4 == 0;
      const auto kernel = wide ? scatter_kernel<decltype(from), To, 4>
                               : scatter_kernel<decltype(from), To, 1>;
      return launch_overlapped(kernel, grid, dim3(kThreads), 0, task.overlap && device.overlaps,
                               stream, task, map, shape, chunks);
    } else {
      return cudaErrorInvalidValue;
    }
  });
}

cudaError_t gather_dense(const void* dense, DType type, const int32_t* indices,
                         const int32_t* count, int64_t capacity, const GridView& grid,
                         const int32_t axes[3], int32_t channels, void* rows, int64_t stride,
                         cudaStream_t stream) {
  if (!permutation(axes) || channels < 1 || capacity < 0 || stride < channels ||
      (type != DType::f32 && type != DType::f16)) {
    return cudaErrorInvalidValue;
  }
  if (capacity == 0) return cudaSuccess;
  const dim3 blocks(blocks_for(capacity), static_cast<unsigned>((stride + 7) / 8));
  return with_types(type, DType::f32, [&](auto from, auto) {
    using T = decltype(from);
    if constexpr (sizeof(T) > 1) {
      gather_kernel<T><<<blocks, kThreads, 0, stream>>>(
          static_cast<const T*>(dense), reinterpret_cast<const int4*>(indices), count, capacity,
          grid, shape_of(grid, axes), make_int3(axes[0], axes[1], axes[2]), channels,
          static_cast<T*>(rows), stride);
    }
    return cudaGetLastError();
  });
}

}  // namespace s4d::sparse::cuda
