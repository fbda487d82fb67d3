// Adding to the gradient of features from many blocks: fp32 vector reductions, or 64-bit fixed
// point whose sum does not depend on order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "deformable_aggregation.h"

namespace s4d::cuda {

// `target` is 16-byte aligned. sm_90 adds four floats with one instruction.
template <int kSize>
__device__ inline void add_float(float* target, const float (&term)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i += 4) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(target + i)), "f"(term[i]), "f"(term[i + 1]),
                   "f"(term[i + 2]), "f"(term[i + 3])
                 : "memory");
#else
#pragma unroll
    for (int k = 0; k < 4; ++k) atomicAdd(target + i + k, term[i + k]);
#endif
  }
}

template <int kSize>
__device__ inline void add_fixed(unsigned long long* target, const float (&term)[kSize],
                                 float scale) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const long long units = __float2ll_rn(term[i] * scale);
    if (units != 0) atomicAdd(target + i, static_cast<unsigned long long>(units));
  }
}

__device__ inline void add_fixed(unsigned long long* target, double term, double scale) {
  const long long units = __double2ll_rn(term * scale);
  if (units != 0) atomicAdd(target, static_cast<unsigned long long>(units));
}

// The power of two that keeps every sum inside 62 bits. A sample adds at most
// max|weights| * max|grad_output| to one element, since its shares sum to at most 1. Never 0; for
// zero or non-finite maxima it does not matter (then the final conversion writes zeros or NaN).
__device__ inline float fixed_point_scale(const float* maxima, const AggregationShape& shape) {
  const float bound = maxima[0] * maxima[1];
  if (!(bound > 0.0f) || isinf(bound)) return 1.0f;
  const float terms = static_cast<float>(shape.anchors) * static_cast<float>(shape.points) *
                      static_cast<float>(shape.views) * static_cast<float>(shape.levels);
  const int exponent = 59 - ilogbf(bound) - ilogbf(terms);
  return exp2f(static_cast<float>(min(max(exponent, -120), 120)));
}

}  // namespace s4d::cuda
