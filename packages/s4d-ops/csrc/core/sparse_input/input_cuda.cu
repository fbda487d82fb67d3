#include <cuda_fp16.h>

#include <algorithm>

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

}  // namespace s4d::sparse::cuda
