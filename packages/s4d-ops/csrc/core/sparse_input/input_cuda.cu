#include <cuda_fp16.h>

#include <algorithm>

#include "../sparse_conv/convolution_cuda.h"
#include "../sparse_conv/overlap.cuh"
#include "../sparse_conv/rows_device.cuh"
#include "input_cuda.h"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;
constexpr float kHalfLimit = 65520.0f;  // from here on, rounding to half gives infinity

__global__ void store_kernel(int32_t* to, int32_t value) { *to = value; }

__global__ void guard_kernel(int32_t* counts, int32_t number, const int32_t* lost,
                             int32_t* needed) {
  for (int i = static_cast<int>(threadIdx.x); i < number; i += static_cast<int>(blockDim.x)) {
    needed[i] = counts[i];
    if (*lost != 0) counts[i] = 0;
  }
}

template <class Value>
__global__ void count_kernel(const Value* features, const int32_t* count, int64_t capacity,
                             int32_t channels, float limit, int32_t* bad) {
  const int64_t rows = *count < capacity ? *count : capacity;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  int found = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * channels; i += step) {
    // false for NaN, too
    found += !(fabsf(static_cast<float>(features[i])) < limit);
  }
  if (found) atomicAdd(bad, found);
}

// A thread takes four neighbouring channels.
__global__ void split_kernel(const float4* from, const int32_t* count, int32_t capacity,
                             int32_t channels, int32_t pieces, __half* to, int32_t to_stride) {
  allow_next_kernel();
  wait_for_kernels();
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t row = at / pieces;
  if (row >= min(*count, capacity)) return;
  const int first = static_cast<int>(at % pieces) * 4;
  const float4 values = from[at];
  const float x[4] = {values.x, values.y, values.z, values.w};
  __half* out = to + row * to_stride;
  if (channels % 4 == 0) {
    __half2 parts[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) parts[j] = halves_of(x[j]);
    alignas(8) __half2 runs[4] = {__lows2half2(parts[0], parts[1]), __lows2half2(parts[2], parts[3]),
                       __highs2half2(parts[0], parts[1]), __highs2half2(parts[2], parts[3])};
    *reinterpret_cast<uint2*>(out + first) = *reinterpret_cast<const uint2*>(runs);
    *reinterpret_cast<uint2*>(out + channels + first) = *reinterpret_cast<const uint2*>(runs + 2);
  } else {
    for (int j = 0; j < 4 && first + j < channels; ++j) {
      const __half2 parts = halves_of(x[j]);
      out[first + j] = __low2half(parts);
      out[channels + first + j] = __high2half(parts);
    }
  }
  if (first == 0) {
    for (int c = 2 * channels; c < to_stride; ++c) out[c] = __float2half_rn(0.0f);
  }
}

}  // namespace

cudaError_t store_int(int32_t* to, int32_t value, cudaStream_t stream) {
  store_kernel<<<1, 1, 0, stream>>>(to, value);
  return cudaGetLastError();
}

cudaError_t guard_counts(int32_t* counts, int32_t number, const int32_t* lost, int32_t* needed,
                         cudaStream_t stream) {
  guard_kernel<<<1, 32, 0, stream>>>(counts, number, lost, needed);
  return cudaGetLastError();
}

cudaError_t count_not_finite(const void* features, DType type, const int32_t* count,
                             int64_t capacity, int32_t channels, bool as_half, int32_t* bad,
                             cudaStream_t stream) {
  if (capacity == 0) return cudaSuccess;
  const int64_t needed = (capacity * channels + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(needed, 1024));
  const float limit = as_half ? kHalfLimit : INFINITY;
  if (type == DType::f16) {
    count_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const __half*>(features), count,
                                                  capacity, channels, limit, bad);
  } else if (type == DType::f32) {
    count_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const float*>(features), count,
                                                  capacity, channels, limit, bad);
  } else {
    return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

cudaError_t split_rows(const float* from, const int32_t* count, int64_t capacity, int32_t channels,
                       void* to, bool overlap, cudaStream_t stream) {
  if (capacity < 0 || capacity > INT32_MAX / 4 || channels < 1) return cudaErrorInvalidValue;
  if (capacity == 0) return cudaSuccess;
  const int32_t pieces = padded_channels(DType::f32, channels) / 4;
  const auto blocks = static_cast<unsigned>((capacity * pieces + kThreads - 1) / kThreads);
  return launch_overlapped(split_kernel, dim3(blocks), dim3(kThreads), 0, overlap, stream,
                           reinterpret_cast<const float4*>(from), count,
                           static_cast<int32_t>(capacity), channels, pieces,
                           static_cast<__half*>(to), padded_channels(DType::f16, 2 * channels));
}

}  // namespace s4d::sparse::cuda
