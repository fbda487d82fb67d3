// Device helpers shared by the forward and backward kernels of deformable aggregation.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "deformable_aggregation.h"

namespace s4d::cuda {

// --- scalars of a type known at run time (staging loops, where the branch costs nothing) ---

template <typename T>
__device__ inline float to_float(T value) { return static_cast<float>(value); }
template <>
__device__ inline float to_float(__half value) { return __half2float(value); }
template <>
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline float load_float(const void* data, int64_t index, DType type) {
  switch (type) {
    case DType::f16: return __half2float(static_cast<const __half*>(data)[index]);
    case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

__device__ inline void store_float(void* data, int64_t index, DType type, float value) {
  switch (type) {
    case DType::f16: static_cast<__half*>(data)[index] = __float2half_rn(value); break;
    case DType::bf16: static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value); break;
    default: static_cast<float*>(data)[index] = value;
  }
}

__device__ inline int64_t load_index(const void* data, int64_t index, DType type) {
  return type == DType::i32 ? static_cast<const int32_t*>(data)[index]
                            : static_cast<const int64_t*>(data)[index];
}

// --- 16 bytes of features as floats ---

template <typename Feature>
struct Vector;  // kSize channels in one 16-byte load

template <>
struct Vector<float> {
  static constexpr int kSize = 4;
  __device__ static void unpack(const uint4& raw, float (&out)[kSize]) {
    out[0] = __uint_as_float(raw.x);
    out[1] = __uint_as_float(raw.y);
    out[2] = __uint_as_float(raw.z);
    out[3] = __uint_as_float(raw.w);
  }
};

template <>
struct Vector<__half> {
  static constexpr int kSize = 8;
  __device__ static void unpack(const uint4& raw, float (&out)[kSize]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
};

template <>
struct Vector<__nv_bfloat16> {
  static constexpr int kSize = 8;
  __device__ static void unpack(const uint4& raw, float (&out)[kSize]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};

template <>
struct Vector<int8_t> {
  static constexpr int kSize = 16;
  __device__ static void unpack(const uint4& raw, float (&out)[kSize]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      out[i] = static_cast<float>(static_cast<int8_t>(words[i / 4] >> (8 * (i % 4))));
    }
  }
};

// --- geometry ---

// The four neighbours of a sample in one feature map. Rows are absolute (first row of the level
// added). A neighbour outside the map has bit k of `inside` cleared.
template <typename Real, typename Index>
struct Bilinear {
  Index x0, y0;      // may be -1 / size - 1: the left and upper neighbour
  Real fx, fy;       // share of the right and lower neighbour
  bool left, right, up, down;
};

// Pixel x0 and the share of x0 + 1 at `location * size - 0.5`. The rounding error of the product
// is carried along, so that the share is good to an ulp of 1, not of `size`.
template <typename Index>
__device__ inline void split_coordinate(float location, Index size, Index* cell, float* share) {
  const float length = static_cast<float>(size);
  const float product = location * length;
  const float residue = fmaf(location, length, -product);
  const float pixel = product - 0.5f;
  float base = floorf(pixel);
  float part = (pixel - base) + residue;
  if (part < 0.0f) {
    part += 1.0f;
    base -= 1.0f;
  } else if (part >= 1.0f) {
    part -= 1.0f;
    base += 1.0f;
  }
  const Index whole = static_cast<Index>(base);
  *cell = whole < -1 ? -1 : (whole > size - 1 ? size - 1 : whole);
  *share = part;
}

__device__ inline void split_coordinate(double location, int64_t size, int64_t* cell,
                                        double* share) {
  const double pixel = location * static_cast<double>(size) - 0.5;
  const double base = floor(pixel);
  const int64_t whole = static_cast<int64_t>(base);
  *cell = whole < -1 ? -1 : (whole > size - 1 ? size - 1 : whole);
  *share = pixel - base;
}

template <typename Real, typename Index>
__device__ inline Bilinear<Real, Index> locate(Real x, Real y, Index height, Index width) {
  Bilinear<Real, Index> at;
  split_coordinate(x, width, &at.x0, &at.fx);
  split_coordinate(y, height, &at.y0, &at.fy);
  at.left = at.x0 >= 0;
  at.right = at.x0 + 1 < width;
  at.up = at.y0 >= 0;
  at.down = at.y0 + 1 < height;
  return at;
}

// Only points strictly inside the image count; NaN compares false.
template <typename Real>
__device__ inline bool counts(Real x, Real y) {
  return x > Real(0) && x < Real(1) && y > Real(0) && y < Real(1);
}

struct Level {
  int64_t height, width, first;
};

// The level of a view, or height 0 if the tables name rows that are not there.
__device__ inline Level load_level(const void* spatial_shapes, const void* level_start_index,
                                   DType type, int64_t view_level, int64_t rows) {
  Level level;
  level.height = load_index(spatial_shapes, 2 * view_level, type);
  level.width = load_index(spatial_shapes, 2 * view_level + 1, type);
  level.first = load_index(level_start_index, view_level, type);
  const bool fits = level.height > 0 && level.width > 0 && level.first >= 0 &&
                    level.height <= rows && level.width <= rows &&
                    level.height * level.width <= rows - level.first;
  if (!fits) level.height = 0;
  return level;
}

// --- division by a number known at launch, as one multiplication ---

struct Divisor {
  uint32_t value = 1, factor = 0, shift = 0;  // exact for dividends below 2^31

  Divisor() = default;
  explicit Divisor(int64_t divisor) : value(static_cast<uint32_t>(divisor)) {
    while ((uint64_t{1} << shift) < value) ++shift;
    factor = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - value)) /
                                       value + 1);
  }

  __device__ uint32_t divide(uint32_t dividend) const {
    return (__umulhi(dividend, factor) + dividend) >> shift;
  }
};

// A level in shared memory. All sizes are below 2^31 where the 16-byte kernels run.
struct alignas(16) StagedLevel {
  int32_t height, width;
  uint32_t first;
};

__device__ inline void stage_levels(const void* spatial_shapes, const void* level_start_index,
                                    DType type, const AggregationShape& shape,
                                    StagedLevel* staged) {
  const int count = static_cast<int>(shape.views * shape.levels);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const Level level = load_level(spatial_shapes, level_start_index, type, i, shape.rows);
    staged[i] = {static_cast<int32_t>(level.height), static_cast<int32_t>(level.width),
                 static_cast<uint32_t>(level.first)};
  }
}

// --- sums and maxima of a warp ---

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ inline uint32_t warp_sum(uint32_t x) { return __reduce_add_sync(0xffffffffu, x); }
__device__ inline uint32_t warp_max(uint32_t x) { return __reduce_max_sync(0xffffffffu, x); }
#else
__device__ inline uint32_t warp_sum(uint32_t x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ inline uint32_t warp_max(uint32_t x) {
  for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
#endif

// --- block-wide compaction in a fixed order ---

// Exclusive prefix sum of `flag` over the block; `total` gets the number of set flags. `scratch`
// holds one int per warp. Ends with every thread past its reads of `scratch`.
__device__ inline int compact(bool flag, int* scratch, int* total) {
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const uint32_t votes = __ballot_sync(0xffffffffu, flag);
  if (lane == 0) scratch[warp] = __popc(votes);
  __syncthreads();
  const uint32_t count = lane < static_cast<int>(blockDim.x >> 5) ? scratch[lane] : 0;
  const int sum = static_cast<int>(warp_sum(count));
  const int before = static_cast<int>(warp_sum(lane < warp ? count : 0u));
  __syncthreads();
  *total = sum;
  return before + __popc(votes & ((1u << lane) - 1u));
}

// --- host side ---

inline std::string status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return std::string(what) + ": CUDA reports " + cudaGetErrorString(error);
}

inline bool aligned16(const void* pointer) {
  return (reinterpret_cast<std::uintptr_t>(pointer) & 15u) == 0;
}

// What the 16-byte kernels ask of the shape: whole vectors inside every group, and offsets inside
// one sample that fit 32 bits when counted in vectors.
inline bool fits_vectors(const AggregationShape& shape, DType feature_type, const void* features) {
  const int64_t size = static_cast<int64_t>(size_of(feature_type));
  if (shape.groups <= 0 || shape.channels <= 0 || !aligned16(features)) return false;
  const int64_t group_bytes = shape.channels / shape.groups * size;
  const int64_t vectors = shape.channels * size / 16;
  return group_bytes % 16 == 0 && vectors <= (int64_t{1} << 20) &&
         shape.rows < (int64_t{1} << 31) &&
         shape.rows <= ((int64_t{1} << 32) - 1) / (vectors > 0 ? vectors : 1) &&
         shape.points * shape.views < (int64_t{1} << 30) && shape.levels < (1 << 16) &&
         shape.groups < (1 << 16);
}

// General kernels: any number of channels, any alignment, also float64.
std::string launch_general_forward(const AggregationForward& args);
std::string launch_general_backward(const AggregationBackward& args, void* sums,
                                    const float* maxima);
// 16-byte kernels. `*taken` stays false where the shape does not fit them.
std::string launch_vector_forward(const AggregationForward& args, bool* taken);
std::string launch_vector_backward(const AggregationBackward& args, void* sums,
                                   const float* maxima, bool* taken);

}  // namespace s4d::cuda
