// Values of rows in any of the three types, and the choice of a kernel by them.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "convolution_cuda.h"

namespace s4d::sparse::cuda {

__device__ inline float value_of(float x, float = 0.0f) { return x; }
__device__ inline float value_of(__half x, float = 0.0f) { return __half2float(x); }
__device__ inline float value_of(int8_t x, float range) {
  return static_cast<float>(x) * (range / 127.0f);
}

// Ties to even, clipped to +-127. NaN becomes -127, as fmaxf drops it.
__device__ inline int code_of(float x, float range) {
  return __float2int_rn(fminf(fmaxf(x * (127.0f / range), -127.0f), 127.0f));
}

// The int8 grid of a range, ready for use: unit 0 means no rounding.
struct Grid8 {
  float to_code = 0.0f, unit = 0.0f;
  Grid8() = default;
  explicit Grid8(float range) {
    if (range > 0.0f) {
      to_code = 127.0f / range;
      unit = range / 127.0f;
    }
  }
  __device__ float rounded(float x) const {
    return static_cast<float>(__float2int_rn(fminf(fmaxf(x * to_code, -127.0f), 127.0f))) * unit;
  }
};

__device__ inline float rounded(float x, float range) {
  return range > 0.0f ? static_cast<float>(code_of(x, range)) * (range / 127.0f) : x;
}

__device__ inline void store_value(float* to, float x, float) { *to = x; }
__device__ inline void store_value(__half* to, float x, float) { *to = __float2half_rn(x); }
__device__ inline void store_value(int8_t* to, float x, float range) {
  *to = static_cast<int8_t>(code_of(x, range));
}

// N neighbouring values, 4 or 8, aligned to their size.
template <int N>
__device__ inline void load_run(const __half* from, float (&to)[N], float) {
  uint32_t words[N / 2];
  if constexpr (N == 8) {
    *reinterpret_cast<uint4*>(words) = *reinterpret_cast<const uint4*>(from);
  } else {
    *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(from);
  }
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(words + i));
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}

template <int N>
__device__ inline void load_run(const int8_t* from, float (&to)[N], float unit) {
  uint32_t words[N / 4];
  if constexpr (N == 8) {
    *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(from);
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    to[i] = static_cast<float>(static_cast<int8_t>(words[i / 4] >> (i % 4 * 8))) * unit;
  }
}

template <int N>
__device__ inline void store_run(__half* to, const float (&from)[N]) {
  uint32_t words[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const __half2 pair = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  if constexpr (N == 8) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(words);
  } else {
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(words);
  }
}

template <int N>
__device__ inline void store_run(int8_t* to, const float (&from)[N], float to_code) {
  uint32_t words[N / 4];
#pragma unroll
  for (int i = 0; i < N / 4; ++i) words[i] = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int code = __float2int_rn(fminf(fmaxf(from[i] * to_code, -127.0f), 127.0f));
    words[i / 4] |= (static_cast<uint32_t>(code) & 0xffu) << (i % 4 * 8);
  }
  if constexpr (N == 8) {
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(words);
  } else {
    *reinterpret_cast<uint32_t*>(to) = words[0];
  }
}

// A float32 as two halves, 22 bits: the nearest one, and what it leaves.
__device__ inline __half2 halves_of(float x) {
  constexpr float kMost = 65504.0f;
  const __half high = __float2half_rn(fminf(fmaxf(x, -kMost), kMost));
  const float rest = fminf(fmaxf(x - __half2float(high), -kMost), kMost);
  return __halves2half2(high, __float2half_rn(rest));
}

__device__ inline float activated(float x, Activation activation, float slope) {
  switch (activation) {
    case Activation::relu: return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::leaky_relu: return x < 0.0f ? x * slope : x;
    case Activation::sigmoid: return 1.0f / (1.0f + expf(-x));
    default: return x;
  }
}

// body(From{}, To{}) for f32 and f16 input and f32, f16, i8 output.
template <class Body>
cudaError_t with_types(DType from, DType to, Body&& body) {
  const auto second = [&](auto f) {
    switch (to) {
      case DType::f32: return body(f, float{});
      case DType::f16: return body(f, __half{});
      case DType::i8: return body(f, int8_t{});
      default: return cudaErrorInvalidValue;
    }
  };
  switch (from) {
    case DType::f32: return second(float{});
    case DType::f16: return second(__half{});
    case DType::i8: return second(int8_t{});
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace s4d::sparse::cuda
