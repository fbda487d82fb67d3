#include "gradient_cuda.h"

#include <algorithm>

#include "convolution_cuda.h"
#include "rows_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kTile = 64, kRows = 16, kThreads = 256;

int64_t parts_of(int64_t capacity) {
  return std::clamp<int64_t>((capacity + 4095) / 4096, 1, 32);
}

// A block sums 64 x 64 weights of one offset over one part of the rows, in row order.
template <class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(WeightGradientTask task, int in_stride,
                                                            int out_stride, int in_tiles,
                                                            int parts, float* sums) {
  __shared__ __align__(16) float left[kRows][kTile];
  __shared__ __align__(16) float right[kRows][kTile];
  __shared__ int source[kRows];
  const int64_t count = min(int64_t{*task.out_count}, task.capacity);
  const int k = blockIdx.y, part = blockIdx.z;
  const int out0 = static_cast<int>(blockIdx.x) / in_tiles * kTile;
  const int in0 = static_cast<int>(blockIdx.x) % in_tiles * kTile;
  const int64_t chunks = (count + kRows - 1) / kRows;
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
  const T* features = static_cast<const T*>(task.features);
  const T* grad = static_cast<const T*>(task.grad);
  float total[4][4] = {};
  for (int64_t chunk = chunks * part / parts; chunk < chunks * (part + 1) / parts; ++chunk) {
    int in = -1;
    __syncthreads();
    if (threadIdx.x < kRows) {
      const int64_t r = chunk * kRows + threadIdx.x;
      if (r < count) in = task.table[k * task.capacity + r];
      source[threadIdx.x] = in;
    }
    if (!__syncthreads_or(in >= 0)) continue;
    for (int i = threadIdx.x; i < kRows * kTile; i += kThreads) {
      const int r = i / kTile, c = i % kTile, from = source[r];
      const bool real = from >= 0;
      left[r][c] = real && out0 + c < task.out_channels
                       ? value_of(grad[(chunk * kRows + r) * out_stride + out0 + c]) : 0.0f;
      right[r][c] = real && in0 + c < task.in_channels
                        ? value_of(features[int64_t{from} * in_stride + in0 + c]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float4 a = *reinterpret_cast<const float4*>(&left[r][row]);
      const float4 b = *reinterpret_cast<const float4*>(&right[r][column]);
      const float x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) total[i][j] = fmaf(x[i], y[j], total[i][j]);
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int o = out0 + row + i, c = in0 + column + j;
      if (o >= task.out_channels || c >= task.in_channels) continue;
      const int64_t size = int64_t{task.out_channels} * task.volume * task.in_channels;
      sums[part * size + (int64_t{o} * task.volume + k) * task.in_channels + c] = total[i][j];
    }
  }
}

__global__ void reduce_kernel(const float* sums, int parts, int64_t size, float* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0.0f;
  for (int part = 0; part < parts; ++part) sum += sums[part * size + i];
  to[i] = sum;
}

template <class T>
cudaError_t run(const WeightGradientTask& task, cudaStream_t stream) {
  const int parts = static_cast<int>(parts_of(task.capacity));
  const int in_tiles = (task.in_channels + kTile - 1) / kTile;
  const int out_tiles = (task.out_channels + kTile - 1) / kTile;
  float* sums = parts == 1 ? task.gradient : static_cast<float*>(task.scratch);
  gradient_kernel<T><<<dim3(in_tiles * out_tiles, task.volume, parts), kThreads, 0, stream>>>(
      task, padded_channels(task.type, task.in_channels),
      padded_channels(task.type, task.out_channels), in_tiles, parts, sums);
  if (parts > 1) {
    const int64_t size = int64_t{task.out_channels} * task.volume * task.in_channels;
    reduce_kernel<<<static_cast<unsigned>((size + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        sums, parts, size, task.gradient);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t weight_gradient_bytes(int32_t volume, int32_t in_channels, int32_t out_channels,
                              int64_t capacity) {
  const int64_t parts = parts_of(capacity);
  return parts == 1 ? 256 : (parts * volume * in_channels * out_channels * 4 + 255) / 256 * 256;
}

cudaError_t weight_gradient(const WeightGradientTask& task, cudaStream_t stream) {
  if (task.in_channels < 1 || task.out_channels < 1 || task.volume < 1 || task.volume > 1024 ||
      task.capacity < 0) {
    return cudaErrorInvalidValue;
  }
  switch (task.type) {
    case DType::f32: return run<float>(task, stream);
    case DType::f16: return run<__half>(task, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace s4d::sparse::cuda
