#include <algorithm>

#include "convolution_launch.h"
#include "rows_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kRows = 64, kColumns = 32, kDepth = 16, kThreads = 128;

// 64 rows x 32 columns of a block; a thread sums 4 x 4 of them, over offsets and depth in order.
__global__ void __launch_bounds__(kThreads) float_kernel(ConvolutionTask task, int in_stride,
                                                         int columns, int out_stride,
                                                         int residual_stride) {
  __shared__ float left[kDepth][kRows + 4];
  __shared__ __align__(16) float right[kDepth][kColumns];
  __shared__ int source[kRows];
  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int64_t count = min(int64_t{*task.out_count}, task.capacity);
  if (first >= count) return;
  const int thread = threadIdx.x, row = thread / 8 * 4, column = thread % 8 * 4;
  const int base = blockIdx.y * kColumns;
  const auto* features = static_cast<const float*>(task.features);
  const auto* weight = static_cast<const float*>(task.weight);
  float sums[4][4] = {};
  for (int k = 0; k < task.volume; ++k) {
    __syncthreads();
    int in = -1;
    if (thread < kRows) {
      if (first + thread < count) in = task.table[k * task.capacity + first + thread];
      source[thread] = in;
    }
    if (!__syncthreads_or(in >= 0)) continue;
    for (int d = 0; d < task.in_channels; d += kDepth) {
      __syncthreads();
      for (int i = thread; i < kRows * kDepth; i += kThreads) {
        const int r = i / kDepth, c = i % kDepth;
        const int from = source[r];
        left[c][r] = from >= 0 && d + c < task.in_channels
                         ? features[int64_t{from} * in_stride + d + c] : 0.0f;
      }
      for (int i = thread; i < kDepth * kColumns; i += kThreads) {
        const int c = i / kColumns, n = i % kColumns;
        right[c][n] = d + c < task.in_channels && base + n < columns
                          ? weight[(int64_t{k} * task.in_channels + d + c) * columns + base + n]
                          : 0.0f;
      }
      __syncthreads();
#pragma unroll
      for (int c = 0; c < kDepth; ++c) {
        const float4 b = *reinterpret_cast<const float4*>(&right[c][column]);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float a = left[c][row + r];
          sums[r][0] = fmaf(a, b.x, sums[r][0]);
          sums[r][1] = fmaf(a, b.y, sums[r][1]);
          sums[r][2] = fmaf(a, b.z, sums[r][2]);
          sums[r][3] = fmaf(a, b.w, sums[r][3]);
        }
      }
    }
  }
  for (int r = 0; r < 4; ++r) {
    if (first + row + r >= count) break;
    const int64_t out = first + row + r;
    for (int i = 0; i < 4; ++i) {
      const int c = base + column + i;
      if (c >= out_stride) break;
      float value = 0.0f;
      if (c < task.out_channels) {
        value = sums[r][i];
        if (task.scale) value *= task.scale[c];
        if (task.bias) value += task.bias[c];
        value = rounded(value, task.sum_range);
        if (task.residual.data) {
          const int64_t at = out * residual_stride + c;
          float other;
          if (task.residual.type == DType::f32) {
            other = static_cast<const float*>(task.residual.data)[at];
          } else if (task.residual.type == DType::f16) {
            other = __half2float(static_cast<const __half*>(task.residual.data)[at]);
          } else {
            other = value_of(static_cast<const int8_t*>(task.residual.data)[at],
                             task.residual.range);
          }
          value += rounded(other, task.residual_range);
        }
        value = activated(value, task.activation, task.slope);
      }
      void* data = const_cast<void*>(task.output.data);
      const int64_t at = out * out_stride + c;
      if (task.output.type == DType::f32) {
        store_value(static_cast<float*>(data) + at, value, 0.0f);
      } else if (task.output.type == DType::f16) {
        store_value(static_cast<__half*>(data) + at, value, 0.0f);
      } else {
        store_value(static_cast<int8_t*>(data) + at, value, task.output.range);
      }
    }
  }
}

}  // namespace

cudaError_t convolve_float(const ConvolutionTask& task, cudaStream_t stream) {
  const int out_stride = padded_channels(task.output.type, task.out_channels);
  const int residual_stride =
      task.residual.data ? padded_channels(task.residual.type, task.out_channels) : 0;
  const dim3 grid(static_cast<unsigned>((task.capacity + kRows - 1) / kRows),
                  static_cast<unsigned>((out_stride + kColumns - 1) / kColumns));
  float_kernel<<<grid, kThreads, 0, stream>>>(task, padded_channels(DType::f32, task.in_channels),
                                              (task.out_channels + 15) / 16 * 16, out_stride,
                                              residual_stride);
  return cudaGetLastError();
}

}  // namespace s4d::sparse::cuda
