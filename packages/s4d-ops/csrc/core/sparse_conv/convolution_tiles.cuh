// The tensor-core kernel of a sparse convolution.
//
// A warp owns 16 or 32 output rows and 16 to 64 output channels. It reads its rows of the table,
// notes which offsets have any input at all, and walks through those. Input rows go from global
// memory straight into registers in operand order (each thread reads 8 or 16 bytes in a row),
// several steps ahead. Weights were packed in operand order; a block keeps all of them in shared
// memory where they fit, else streams them through a ring of stages.
#pragma once

#include "mma_device.cuh"
#include "rows_device.cuh"

namespace s4d::sparse::cuda {

struct TileTask {
  ConvolutionTask task;
  int row_bytes;          // of a feature row
  int parts;              // pieces of kPiece bytes of a feature row
  int columns;            // output channels of a block of the grid's second axis
  int all_columns;        // output channels, padded to 16
  int out_stride;         // elements of an output row
  int residual_stride;
  int stage_slabs;        // slabs of a stage; a slab is one piece of depth of all columns
  int stages;             // all stages of the weights
  int epilogue_offset;    // shared memory: scale and bias, then the warps' parts of the table
  int table_offset;
  int warp_bytes;         // of the table part
};

constexpr int kRing = 4;  // stages in shared memory when the weights do not fit

// Residual, rounding, activation and the store of kRun neighbouring columns.
template <int kRun>
__device__ inline void finish(const TileTask& t, int64_t row, int column, float (&value)[kRun]) {
  const ConvolutionTask& task = t.task;
  if (task.sum_range > 0.0f) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) value[j] = rounded(value[j], task.sum_range);
  }
  const Features& other = task.residual;
  if (other.data) {
    const int64_t at = row * t.residual_stride + column;
    float add[kRun];
    if (other.type == DType::f16) {
      load_run(static_cast<const __half*>(other.data) + at, add, 0.0f);
    } else if (other.type == DType::i8) {
      load_run(static_cast<const int8_t*>(other.data) + at, add, other.range);
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        add[j] = column + j < t.residual_stride
                     ? static_cast<const float*>(other.data)[at + j] : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kRun; ++j) value[j] += rounded(add[j], task.residual_range);
  }
  if (task.activation == Activation::relu) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) value[j] = value[j] < 0.0f ? 0.0f : value[j];
  } else if (task.activation != Activation::none) {
#pragma unroll
    for (int j = 0; j < kRun; ++j) value[j] = activated(value[j], task.activation, task.slope);
    if (task.activation == Activation::sigmoid) {  // padding stays zero
#pragma unroll
      for (int j = 0; j < kRun; ++j) value[j] = column + j < task.out_channels ? value[j] : 0.0f;
    }
  }
  const int64_t at = row * t.out_stride + column;
  void* data = const_cast<void*>(task.output.data);
  if (task.output.type == DType::f16) {
    store_run(static_cast<__half*>(data) + at, value, 0.0f);
  } else if (task.output.type == DType::i8) {
    store_run(static_cast<int8_t*>(data) + at, value, task.output.range);
    // Rows of codes are padded to 32, the columns of a convolution to 16.
    if (column + 16 >= t.all_columns && t.all_columns < t.out_stride) {
      const float nothing[kRun] = {};
      store_run(static_cast<int8_t*>(data) + at + 16, nothing, 1.0f);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      if (column + j < t.out_stride) static_cast<float*>(data)[at + j] = value[j];
    }
  }
}

// kPiece: bytes of depth of a step, 32 or 64. kTiles: 16-row tiles of a warp. kColumns: output
// channels of a warp. kAhead: steps whose input is under way.
template <class Sum, int kPiece, int kTiles, int kColumns, int kAhead, bool kResident>
__global__ void __launch_bounds__(kTiles * kColumns >= 128 ? 256 : 512)
    tile_kernel(const __grid_constant__ TileTask t) {
  constexpr int kRows = 16 * kTiles;
  constexpr int kGroups = kColumns / 8;      // column tiles of 8
  constexpr int kWords = kPiece / 16;        // words of a thread and row per step
  extern __shared__ __align__(16) unsigned char shared[];
  const ConvolutionTask& task = t.task;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int g = lane >> 2, quad = lane & 3;
  const int column_groups = t.columns / kColumns;
  const int slots = warps / column_groups;  // row tiles of a pass
  const int slot = warp / column_groups, column_group = warp % column_groups;

  // Tiles are spread evenly over the blocks, neighbours together.
  const int count = static_cast<int>(min(int64_t{*task.out_count}, task.capacity));
  const int64_t tiles = (count + kRows - 1) / kRows;
  const int first = static_cast<int>(tiles * blockIdx.x / gridDim.x);
  const int last = static_cast<int>(tiles * (blockIdx.x + 1) / gridDim.x);
  if (first == last) return;
  const int passes = (last - first + slots - 1) / slots;

  const int slab_bytes = t.columns * kPiece;
  const int slabs = task.volume * t.parts;
  const int stage_bytes = t.stage_slabs * slab_bytes;
  const int column_base = blockIdx.y * t.columns;
  const auto* weight = static_cast<const unsigned char*>(task.weight) +
                       int64_t{blockIdx.y} * slabs * slab_bytes;
  int issued = 0;  // stages, counted over all passes
  const auto issue = [&] {
    if (kResident || issued < t.stages * passes) {
      const int stage = kResident ? 0 : issued % t.stages;
      const int from = stage * stage_bytes;
      const int bytes = min(stage_bytes, slabs * slab_bytes - from);
      unsigned char* to = shared + (kResident ? 0 : issued % kRing * stage_bytes);
      for (int i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16) {
        copy_16(to + i, weight + from + i);
      }
    }
    commit_copies();
    ++issued;
  };
  issue();
  if (!kResident) {
#pragma unroll
    for (int i = 1; i < kRing - 1; ++i) issue();
  }

  float* scale = reinterpret_cast<float*>(shared + t.epilogue_offset);
  float* bias = scale + t.columns;
  for (int i = threadIdx.x; i < t.columns; i += blockDim.x) {
    const int column = column_base + i;
    const bool real = column < task.out_channels;
    scale[i] = real ? (task.scale ? task.scale[column] : 1.0f) : 0.0f;
    bias[i] = real && task.bias ? task.bias[column] : 0.0f;
  }
  int* source = reinterpret_cast<int*>(shared + t.table_offset + warp * t.warp_bytes);
  unsigned* active = reinterpret_cast<unsigned*>(source + task.volume * kRows);
  if (kResident) wait_copies<0>();
  meet();

  int ready = 0;  // ring stages passed by this warp's barrier
  const auto advance = [&] {
    wait_copies<kRing - 2>();
    meet();
    issue();
    ++ready;
  };

  for (int pass = 0; pass < passes; ++pass) {
    const int tile = first + pass * slots + slot;
    const bool working = slot < slots && tile < last;
    if (kResident && !working) break;
    int slab_end = 0;  // slabs of this pass that are in shared memory end here
    if (working) {
      // The tile's part of the table. With 16 rows each half of the warp takes every other offset.
      __syncwarp();
      {
        const int row = tile * kRows + (kTiles == 1 ? lane & 15 : lane);
        const int half = kTiles == 1 ? lane >> 4 : 0;
        const int step = kTiles == 1 ? 2 : 1;
        unsigned word = 0;
#pragma unroll 9
        for (int k = 0; k < task.volume; k += step) {
          const int mine = k + half;
          int in = -1;
          if (row < count && mine < task.volume) in = task.table[mine * task.capacity + row];
          const unsigned any = __ballot_sync(~0u, in >= 0);
          if (kTiles == 1) {
            if (mine < task.volume) source[mine * kRows + (lane & 15)] = in;
            word |= ((any & 0xffffu) != 0 ? 1u : 0u) << (k & 31);
            word |= ((any >> 16) != 0 ? 2u : 0u) << (k & 31);
          } else {
            source[mine * kRows + lane] = in;
            word |= (any != 0 ? 1u : 0u) << (k & 31);
          }
          if (((k + step) & 31) == 0 || k + step >= task.volume) {
            if (lane == 0) active[k >> 5] = word;
            word = 0;
          }
        }
      }
      __syncwarp();

      Sum sums[kTiles][kGroups][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][n][i] = Sum(0);
        }
      }

      // The next step: a piece of depth at an active offset.
      unsigned rest = active[0];
      int base = 0, offset = -1, part = t.parts - 1;
      const auto next = [&] {
        if (++part < t.parts) return offset * t.parts + part;
        part = 0;
        while (rest == 0) {
          base += 32;
          if (base >= task.volume) return -1;
          rest = active[base >> 5];
        }
        offset = base + __ffs(static_cast<int>(rest)) - 1;
        rest &= rest - 1;
        return offset * t.parts;
      };
      const auto* features =
          static_cast<const unsigned char*>(task.features) + quad * (kPiece / 4);
      uint32_t input[kAhead][2 * kTiles][kWords];
      int slab[kAhead];
      bool more = true;
      const auto fetch = [&](int d) {
        slab[d] = more ? next() : -1;
        if (slab[d] < 0) {
          more = false;
          return;
        }
        const unsigned char* from = features + part * kPiece;
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          const int in = source[offset * kRows + i * 8 + g];
          if constexpr (kWords == 4) {
            uint4 x = make_uint4(0, 0, 0, 0);
            if (in >= 0) {
              x = __ldg(reinterpret_cast<const uint4*>(from + int64_t{in} * t.row_bytes));
            }
            input[d][i][0] = x.x;
            input[d][i][1] = x.y;
            input[d][i][2] = x.z;
            input[d][i][3] = x.w;
          } else {
            uint2 x = make_uint2(0, 0);
            if (in >= 0) {
              x = __ldg(reinterpret_cast<const uint2*>(from + int64_t{in} * t.row_bytes));
            }
            input[d][i][0] = x.x;
            input[d][i][1] = x.y;
          }
        }
      };
      const auto compute = [&](int d) {
        int place = slab[d];
        if constexpr (!kResident) {
          while (slab[d] >= slab_end) {
            advance();
            slab_end += t.stage_slabs;
          }
          place = slab[d] - (slab_end - t.stage_slabs) + (ready - 1) % kRing * t.stage_slabs;
        }
        const uint4* b = reinterpret_cast<const uint4*>(
            shared + place * slab_bytes + column_group * (kColumns * kPiece)) + lane;
        if constexpr (kWords == 4) {
#pragma unroll
          for (int n = 0; n < kGroups; ++n) {
            const uint4 right = b[n * 32];
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
              const auto& x = input[d][2 * m];
              const auto& y = input[d][2 * m + 1];
              multiply(sums[m][n], x[0], y[0], x[1], y[1], right.x, right.y);
              multiply(sums[m][n], x[2], y[2], x[3], y[3], right.z, right.w);
            }
          }
        } else {
#pragma unroll
          for (int n = 0; n < kGroups; n += 2) {
            const uint4 right = b[n * 16];
#pragma unroll
            for (int m = 0; m < kTiles; ++m) {
              const auto& x = input[d][2 * m];
              const auto& y = input[d][2 * m + 1];
              multiply(sums[m][n], x[0], y[0], x[1], y[1], right.x, right.y);
              multiply(sums[m][n + 1], x[0], y[0], x[1], y[1], right.z, right.w);
            }
          }
        }
      };

#pragma unroll
      for (int d = 0; d < kAhead; ++d) fetch(d);
      bool running = true;
      while (running) {
#pragma unroll
        for (int d = 0; d < kAhead; ++d) {
          if (running) {
            if (slab[d] < 0) {
              running = false;
            } else {
              compute(d);
              fetch(d);
            }
          }
        }
      }

      // A thread holds `kRun` neighbouring columns of each group of 4 * kRun, of rows g, g + 8, ...
      constexpr int kRun = kColumns >= 32 ? 8 : 4;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        const int at = tile * kRows + i * 8 + g;
        if (at >= count) continue;
        const int64_t row = task.columns ? task.columns[at] : at;
#pragma unroll
        for (int run = 0; run < kColumns / (4 * kRun); ++run) {
          const int column = column_group * kColumns + run * 4 * kRun + quad * kRun;
          float value[kRun];
#pragma unroll
          for (int j = 0; j < kRun; ++j) {
            const Sum sum = sums[i / 2][run * (kRun / 2) + j / 2][i % 2 * 2 + j % 2];
            value[j] = fmaf(static_cast<float>(sum), scale[column + j], bias[column + j]);
          }
          finish<kRun>(t, row, column_base + column, value);
        }
      }
    }
    if constexpr (!kResident) {
      // Other warps wait for this one at every stage.
      for (; slab_end < slabs; slab_end += t.stage_slabs) advance();
    }
  }
}

}  // namespace s4d::sparse::cuda
