// What the tensor-core kernels share: the task as a kernel takes it, and all that follows a row's
// sums.
#pragma once

#include "convolution_launch.h"
#include "overlap.cuh"
#include "rows_device.cuh"

namespace s4d::sparse::cuda {

struct TileTask {
  ConvolutionTask task;
  int row_bytes;          // of a feature row
  int groups;             // of kParts slabs of an offset: the outermost loop over depth
  int columns;            // output channels of a block of the grid's second axis
  int all_columns;        // output channels, padded to 16
  int out_stride;         // elements of an output row
  int residual_stride;
  int stage_slabs;        // slabs of a stage; a slab is one piece of depth of all columns
  int stages;             // all stages of the weights; with warpgroups: stages in shared memory
  int epilogue_offset;    // shared memory: scale and bias, then the warps' parts of the table
  int table_offset;
  int warp_bytes;         // of the table part
  Grid8 output, sum, residual;  // rounding; a residual of codes is restored with residual_unit
  float residual_unit;
};

inline TileTask describe_task(const ConvolutionTask& task, const PackedLayout& layout) {
  TileTask t = {};
  t.task = task;
  t.row_bytes = layout.row_bytes;
  t.groups = layout.groups;
  t.columns = layout.columns;
  t.all_columns = layout.all_columns;
  t.out_stride = padded_channels(task.output.type, task.out_channels);
  t.residual_stride =
      task.residual.data ? padded_channels(task.residual.type, task.out_channels) : 0;
  t.output = Grid8(task.output.range);
  t.sum = Grid8(task.sum_range);
  t.residual = Grid8(task.residual_range);
  t.residual_unit = task.residual.range / 127.0f;
  return t;
}

// The residual of 8 neighbouring columns as it is in memory, where that is at most 16 bytes.
__device__ inline uint4 load_residual(const TileTask& t, int64_t row, int column) {
  const Features& other = t.task.residual;
  const int64_t at = row * t.residual_stride + column;
  uint4 raw = make_uint4(0, 0, 0, 0);
  if (other.type == DType::f16) {
    raw = *reinterpret_cast<const uint4*>(static_cast<const __half*>(other.data) + at);
  } else if (other.type == DType::i8) {
    const uint2 codes =
        *reinterpret_cast<const uint2*>(static_cast<const int8_t*>(other.data) + at);
    raw.x = codes.x, raw.y = codes.y;
  }
  return raw;
}

// The rare parts of `finish`, out of line: their code would be in every instance. Floats come and go
// in registers, and rows of them have a multiple of four.
struct Floats8 {
  float4 low, high;
};

static __device__ __noinline__ Floats8 load_floats(const TileTask& t, int64_t row, int column) {
  const float* from =
      static_cast<const float*>(t.task.residual.data) + row * t.residual_stride + column;
  Floats8 run{make_float4(0.0f, 0.0f, 0.0f, 0.0f), make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
  if (column < t.residual_stride) run.low = reinterpret_cast<const float4*>(from)[0];
  if (column + 4 < t.residual_stride) run.high = reinterpret_cast<const float4*>(from)[1];
  return run;
}

static __device__ __noinline__ void activate(const TileTask& t, int column, float (&value)[8]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    // Padding stays zero, also under a sigmoid.
    value[j] = column + j < t.task.out_channels
                   ? activated(value[j], t.task.activation, t.task.slope) : 0.0f;
  }
}

static __device__ __noinline__ void store_floats(const TileTask& t, int64_t row, int column,
                                                 Floats8 run) {
  if (t.task.output.data) {
    float* to =
        static_cast<float*>(const_cast<void*>(t.task.output.data)) + row * t.out_stride + column;
    if (column < t.out_stride) reinterpret_cast<float4*>(to)[0] = run.low;
    if (column + 4 < t.out_stride) reinterpret_cast<float4*>(to)[1] = run.high;
  }
  const int channels = t.task.out_channels;
  if (t.task.halves && column < channels) {
    const float value[8] = {run.low.x,  run.low.y,  run.low.z,  run.low.w,
                            run.high.x, run.high.y, run.high.z, run.high.w};
    alignas(16) __half2 high[4], rest[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const __half2 a = halves_of(value[2 * j]), b = halves_of(value[2 * j + 1]);
      high[j] = __lows2half2(a, b);
      rest[j] = __highs2half2(a, b);
    }
    __half* to = static_cast<__half*>(t.task.halves) + row * 2 * channels + column;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(high);
    *reinterpret_cast<uint4*>(to + channels) = *reinterpret_cast<const uint4*>(rest);
  }
}

// Residual, rounding, activation and the store of 8 neighbouring columns.
__device__ inline void finish(const TileTask& t, int64_t row, int column, float (&value)[8],
                              const uint4& raw) {
  constexpr int kRun = 8;
  const ConvolutionTask& task = t.task;
  if (t.sum.unit > 0.0f) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) value[j] = t.sum.rounded(value[j]);
  }
  const Features& other = task.residual;
  if (other.data) {
    float add[kRun];
    if (other.type == DType::f16) {
      load_run(reinterpret_cast<const __half*>(&raw), add, 1.0f);
    } else if (other.type == DType::i8) {
      load_run(reinterpret_cast<const int8_t*>(&raw), add, t.residual_unit);
    } else {
      const Floats8 run = load_floats(t, row, column);
      add[0] = run.low.x, add[1] = run.low.y, add[2] = run.low.z, add[3] = run.low.w;
      add[4] = run.high.x, add[5] = run.high.y, add[6] = run.high.z, add[7] = run.high.w;
    }
    if (t.residual.unit > 0.0f) {
#pragma unroll
      for (int j = 0; j < kRun; ++j) add[j] = t.residual.rounded(add[j]);
    }
#pragma unroll
    for (int j = 0; j < kRun; ++j) value[j] += add[j];
  }
  if (task.activation == Activation::relu) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) value[j] = value[j] < 0.0f ? 0.0f : value[j];
  } else if (task.activation != Activation::none) {
    float copy[kRun];
#pragma unroll
    for (int j = 0; j < kRun; ++j) copy[j] = value[j];
    activate(t, column, copy);
#pragma unroll
    for (int j = 0; j < kRun; ++j) value[j] = copy[j];
  }
  const int64_t at = row * t.out_stride + column;
  void* data = const_cast<void*>(task.output.data);
  if (task.output.type == DType::f16) {
    store_run(static_cast<__half*>(data) + at, value);
  } else if (task.output.type == DType::i8) {
    store_run(static_cast<int8_t*>(data) + at, value, t.output.to_code);
    // Rows of codes are padded to 32, the columns of a convolution to 16.
    if (column + 16 >= t.all_columns && t.all_columns < t.out_stride) {
      *reinterpret_cast<uint2*>(static_cast<int8_t*>(data) + at + 16) = make_uint2(0, 0);
    }
  } else {
    store_floats(t, row, column, {make_float4(value[0], value[1], value[2], value[3]),
                                  make_float4(value[4], value[5], value[6], value[7])});
  }
}

// Finishes `rows` rows from `base` on and columns from `column` on, 8 << run_shift of them, whose
// sums, scale and bias lie in shared memory. `threads` threads share the work.
template <int kBatch>
__device__ inline void finish_tile(const TileTask& t, int base, int rows, int column,
                                   int run_shift, int row_floats, const float* sums,
                                   const float* scale, const float* bias, int thread,
                                   int threads) {
  const int items = rows << run_shift, mask = (1 << run_shift) - 1;
#pragma unroll 1
  for (int first = thread; first < items; first += threads * kBatch) {
    uint4 held[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int item = first + i * threads;
      if (t.task.residual.data && item < items) {
        held[i] = load_residual(t, base + (item >> run_shift), column + (item & mask) * 8);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int item = first + i * threads;
      if (item >= items) break;
      const int row = item >> run_shift, run = (item & mask) * 8;
      float value[8];
#pragma unroll
      for (int j = 0; j < 8; j += 4) {
        const float4 x = *reinterpret_cast<const float4*>(sums + row * row_floats + run + j);
        const float4 s = *reinterpret_cast<const float4*>(scale + run + j);
        const float4 b = *reinterpret_cast<const float4*>(bias + run + j);
        value[j] = fmaf(x.x, s.x, b.x);
        value[j + 1] = fmaf(x.y, s.y, b.y);
        value[j + 2] = fmaf(x.z, s.z, b.z);
        value[j + 3] = fmaf(x.w, s.w, b.w);
      }
      finish(t, base + row, column + run, value, held[i]);
    }
  }
}

}  // namespace s4d::sparse::cuda
