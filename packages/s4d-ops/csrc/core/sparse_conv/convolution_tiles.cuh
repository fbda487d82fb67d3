// The tensor-core kernel of a sparse convolution.
//
// A warp owns 16 or 32 output rows and 16 to 64 output channels. It reads its rows of the table and
// walks through all offsets: nearly each has some input for one of so many rows, and to look for those
// that have none costs more than they do. Input rows go from global memory straight into registers in
// operand order (each thread reads 8 or 16 bytes in a row), ahead of their use, as the right operand
// of products whose left one is weights. Those were packed in operand order; a block keeps all of
// them in shared memory where they fit, else streams them through a ring of stages. There are few
// warps and long chains of dependent instructions here, so what counts is to need few instructions a
// step.
#pragma once

#include "convolution_epilogue.cuh"
#include "mma_device.cuh"

namespace s4d::sparse::cuda {

constexpr int kRing = 4;  // stages in shared memory when the weights do not fit

// Floats from row to row of a warp's sums in shared memory; 4 more than the columns spread rows
// over the banks.
__host__ __device__ constexpr int row_floats(int columns) { return columns + 4; }

// Of a block; narrow kernels get registers for two such blocks on a multiprocessor.
__host__ __device__ constexpr int max_threads(int tiles, int columns) {
  return columns < 64 ? 320 : tiles * columns >= 128 ? 256 : 512;
}

// kPiece: bytes of depth of a slab, 32 or 64; kParts: slabs of an offset that are worked on
// together. kTiles: 16-row tiles of a warp. kColumns: output channels of a warp.
template <class Sum, int kPiece, int kParts, int kTiles, int kColumns, bool kResident>
__global__ void __launch_bounds__(max_threads(kTiles, kColumns), kColumns < 64 && kParts == 1 ? 2 : 1)
    tile_kernel(const __grid_constant__ TileTask t) {
  constexpr int kRows = 16 * kTiles;
  constexpr int kHeld = 2 * kTiles;           // rows of a thread
  constexpr int kGroups = kColumns / 16;      // column tiles of 16
  constexpr int kSteps = kPiece / 32;         // products over a slab
  constexpr int kWords = kPiece / 16;         // words of a thread, row and slab
  constexpr int kRowFloats = row_floats(kColumns);
  // Offsets whose input is under way.
  constexpr int kAhead = kParts == 4 ? 1 : kParts == 2 ? 2
                         : kPiece == 64 ? (kColumns < 64 ? 2 : 3) : kColumns == 16 ? 4 : 3;
  extern __shared__ __align__(16) unsigned char shared[];
  const ConvolutionTask& task = t.task;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int g = lane >> 2, quad = lane & 3;
  const int volume = task.volume;
  int slots = warps, slot = warp, column_group = 0;  // slots: row tiles of a pass
  if (t.columns != kColumns) {
    const int column_groups = t.columns / kColumns;
    slots = warps / column_groups;
    slot = warp / column_groups;
    column_group = warp % column_groups;
  }

  const int slab_bytes = t.columns * kPiece;
  const int slabs = volume * kParts * t.groups;
  const int stage_bytes = t.stage_slabs * slab_bytes;
  const int column_base = blockIdx.y * t.columns;
  const auto* weight = static_cast<const unsigned char*>(task.weight) +
                       int64_t{blockIdx.y} * slabs * slab_bytes;
  int issued = 0;  // stages, counted over all passes
  int wanted = t.stages;
  const auto issue = [&] {
    if (kResident || issued < wanted) {
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
  float* scale = reinterpret_cast<float*>(shared + t.epilogue_offset);
  float* bias = scale + t.columns;
  const auto fetch_constants = [&] {
    issue();
    if (!kResident) {
#pragma unroll
      for (int i = 1; i < kRing - 1; ++i) issue();
    }
    for (int i = threadIdx.x; i < t.columns; i += blockDim.x) {
      const int column = column_base + i;
      const bool real = column < task.out_channels;
      scale[i] = real ? (task.scale ? task.scale[column] : 1.0f) : 0.0f;
      bias[i] = real && task.bias ? task.bias[column] : 0.0f;
    }
  };
  allow_next_kernel();
  if (task.settled_weights) fetch_constants();
  wait_for_kernels();

  // Tiles are spread evenly over the blocks, neighbours together.
  const int count = static_cast<int>(min(int64_t{*task.out_count}, task.capacity));
  const unsigned tiles = static_cast<unsigned>(count + kRows - 1) / kRows;
  const unsigned share = tiles / gridDim.x, extra = tiles - share * gridDim.x;
  const int first = static_cast<int>(share * blockIdx.x + min(blockIdx.x, extra));
  const int last = first + static_cast<int>(share + (blockIdx.x < extra ? 1 : 0));
  if (first == last) {
    wait_copies<0>();
    return;
  }
  const int passes = (last - first + slots - 1) / slots;
  wanted = t.stages * passes;
  if (!task.settled_weights) fetch_constants();

  int* source = reinterpret_cast<int*>(shared + t.table_offset + warp * t.warp_bytes);
  if (!kResident) meet();  // scale and bias

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
    int slab_end = 0;  // slabs of this pass that are in shared memory end here
    if (working) {
      // The tile's part of the table, rows g, g + 8, ... together. With 16 rows each half of the
      // warp takes every other offset.
      __syncwarp();
      {
        const int row = kTiles == 1 ? lane & 15 : lane;
        const int half = kTiles == 1 ? lane >> 4 : 0;
        constexpr int step = kTiles == 1 ? 2 : 1;
        const bool real = tile * kRows + row < count;
        const int32_t* entry = task.table + tile * kRows + row + half * task.capacity;
        int* const mine = source + half * kRows + (row & 7) * kHeld + (row >> 3);
#pragma unroll 9
        for (int k = half; k < volume; k += step) {
          int* to = mine + (k - half) * kRows;
          if (real) {
            copy_4(to, entry);
          } else {
            *to = -1;
          }
          entry += step * task.capacity;
        }
        commit_copies();
        wait_copies<0>();
      }
      __syncwarp();
    }
    if (kResident) {
      if (pass == 0) {
        wait_copies<0>();
        meet();
      }
      if (!working) break;
    }
    if (working) {
      // Of 8 rows and 16 columns each: columns g (two), g + 8 (two) of rows 2 * quad and the next.
      Sum sums[kHeld][kGroups][4];
#pragma unroll
      for (int m = 0; m < kHeld; ++m) {
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][n][i] = Sum(0);
        }
      }

      uint32_t input[kAhead][kParts][kHeld][kWords];
      const auto* features =
          static_cast<const unsigned char*>(task.features) + quad * (kPiece / 4);
      const int* mine = source + g * kHeld;
      // The rows of an offset that this thread reads; none where there is no such offset.
      const auto rows_of = [&](int k, int (&in)[kHeld]) {
        const int* from = mine + k * kRows;
        if constexpr (kTiles == 2) {
          const int4 x = *reinterpret_cast<const int4*>(from);
          in[0] = x.x, in[1] = x.y, in[2] = x.z, in[3] = x.w;
        } else {
          const int2 x = *reinterpret_cast<const int2*>(from);
          in[0] = x.x, in[1] = x.y;
        }
      };
      const auto fetch = [&](int k, uint32_t (&to)[kParts][kHeld][kWords]) {
        int in[kHeld];
        rows_of(min(k, volume - 1), in);
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          const unsigned char* from =
              features + uint64_t{static_cast<unsigned>(in[i])} * static_cast<unsigned>(t.row_bytes);
#pragma unroll
          for (int p = 0; p < kParts; ++p) {
            load_words(to[p][i], from + p * kPiece, in[i] >= 0 && k < volume);
          }
        }
      };
      const auto compute = [&](const unsigned char* slab, const uint32_t (&x)[kHeld][kWords]) {
        const uint4* w = reinterpret_cast<const uint4*>(slab);
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            const uint4 left = w[(n * kSteps + step) * 32];
#pragma unroll
            for (int m = 0; m < kHeld; ++m) {
              multiply(sums[m][n], left.x, left.y, left.z, left.w, x[m][2 * step],
                       x[m][2 * step + 1]);
            }
          }
        }
      };
      const unsigned char* operand =
          shared + column_group * (kColumns * kPiece) + lane * 16;

      for (int group = 0; group < t.groups; ++group) {
#pragma unroll
        for (int d = 0; d < kAhead; ++d) fetch(d, input[d]);
        const unsigned char* weights = operand + group * volume * kParts * slab_bytes;
        for (int first_k = 0; first_k < volume; first_k += kAhead) {
#pragma unroll
          for (int d = 0; d < kAhead; ++d) {
            const int k = first_k + d;
            if (k >= volume) break;
#pragma unroll
            for (int p = 0; p < kParts; ++p) {
              if constexpr (!kResident) {
                const int slab = (group * volume + k) * kParts + p;
                if (slab >= slab_end) {
                  advance();
                  slab_end += t.stage_slabs;
                }
                const int place = slab - slab_end + t.stage_slabs +
                                  (ready - 1) % kRing * t.stage_slabs;
                compute(operand + place * slab_bytes, input[d][p]);
              } else {
                compute(weights, input[d][p]);
                weights += slab_bytes;
              }
            }
            fetch(k + kAhead, input[d]);
          }
        }
        features += kParts * kPiece;
      }

      // Sums go through shared memory, so that each thread finishes 8 neighbouring columns and the
      // code for that is there once.
      __syncwarp();
      float* rows = reinterpret_cast<float*>(source);
#pragma unroll
      for (int m = 0; m < kHeld; ++m) {
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            rows[(m * 8 + quad * 2 + i % 2) * kRowFloats + n * 16 + g + i / 2 * 8] =
                static_cast<float>(sums[m][n][i]);
          }
        }
      }
      __syncwarp();
      finish_tile<2>(
          t, tile * kRows, min(kRows, count - tile * kRows), column_base + column_group * kColumns,
          kColumns == 16 ? 1 : kColumns == 32 ? 2 : 3, kRowFloats, rows,
          scale + column_group * kColumns, bias + column_group * kColumns, lane, 32);
    }
    if constexpr (!kResident) {
      // Other warps wait for this one at every stage.
      for (; slab_end < slabs; slab_end += t.stage_slabs) advance();
    }
  }
}

}  // namespace s4d::sparse::cuda
