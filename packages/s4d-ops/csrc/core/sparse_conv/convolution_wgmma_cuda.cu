// The convolution of wide layers on Hopper's warpgroup instructions. Compiled for sm_90a alone.
//
// A block owns kRows output rows and 64 output channels for each of its warpgroups (four warps).
// Products are channels by rows: weights are the left operand and go from global memory straight into
// registers, packed in operand order; input rows are the right operand and are gathered into a ring
// in shared memory, ahead of their use. So a tile may have any multiple of eight rows, and the
// number is chosen so that the device does all rows at once. With so many rows nearly every offset
// has some input: none is skipped.
#include <algorithm>

#include "convolution_epilogue.cuh"
#include "mma_device.cuh"
#include "wgmma_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kMaxStages = 6;
constexpr int kBuffers = 3;  // offsets whose weights are in registers or on their way
constexpr int kGroup = 128;  // threads of a warpgroup

// kParts: 64-byte pieces of a feature row, 2 or 4; kGroups: warpgroups of a block.
template <class Sum, int kParts, int kRows, int kGroups>
__global__ void __launch_bounds__(kGroups * kGroup, 3 - kGroups)
    group_kernel(const __grid_constant__ TileTask t) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kRowBytes = kParts * 64;
  constexpr int kSteps = kParts * 2;         // products of an offset
  constexpr int kChunks = kParts * 4;        // 16-byte pieces of a row
  constexpr int kStageBytes = kRowBytes * kRows;
  const ConvolutionTask& task = t.task;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = threadIdx.x / kGroup;
  const int g = lane >> 2, quad = lane & 3, volume = task.volume;
  constexpr int threads = kGroups * kGroup, columns = kGroups * 64, row_floats = columns + 4;
  const int column_base = blockIdx.y * columns;
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  float* scale = reinterpret_cast<float*>(shared + t.epilogue_offset);
  float* bias = scale + columns;
  int* source = reinterpret_cast<int*>(shared + t.table_offset);  // volume x kRows

  constexpr int kOffsetBytes = kParts * 64 * columns;
  const auto* weight = static_cast<const unsigned char*>(task.weight) +
                       int64_t{blockIdx.y} * volume * kOffsetBytes + group * 4096 +
                       (warp & 3) * 512 + lane * 16;
  uint32_t left[kBuffers][kSteps][4];
  const auto fetch = [&](int k, uint32_t (&to)[kSteps][4]) {
    const unsigned char* from = weight + static_cast<unsigned>(k * kOffsetBytes);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      load_weights<kGroups == 1>(to[s], from + s / 2 * 64 * columns + s % 2 * 2048);
    }
  };
  const auto fetch_first = [&] {
    fetch(0, left[0]);
    if (volume > 1) fetch(1, left[1]);
  };
  const auto fetch_constants = [&] {
    for (int i = threadIdx.x; i < columns; i += threads) {
      const int column = column_base + i;
      const bool real = column < task.out_channels;
      scale[i] = real ? (task.scale ? task.scale[column] : 1.0f) : 0.0f;
      bias[i] = real && task.bias ? task.bias[column] : 0.0f;
    }
  };
  if (task.settled_weights) {
    fetch_first();
    fetch_constants();
  }
  wait_for_kernels();
  allow_next_kernel();
  if (!task.settled_weights) fetch_constants();

  const int count = static_cast<int>(min(int64_t{*task.out_count}, task.capacity));
  const int tiles = (count + kRows - 1) / kRows;
  // Which rows of a tile this thread gathers, and which 16 bytes of them, stay the same.
  const int chunk = threadIdx.x % kChunks, first_row = threadIdx.x / kChunks;
  constexpr int row_step = threads / kChunks;  // a multiple of 8
  const uint32_t place = ring + static_cast<uint32_t>(
      chunk * 16 / kSpan * (kRows * kSpan) + first_row * kSpan +
      (chunk % 8 ^ (first_row & 7)) * 16);
  const auto* features = static_cast<const unsigned char*>(task.features) + chunk * 16;
  const int stages = t.stages;

  bool fetched = task.settled_weights;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    if (!fetched) fetch_first();
    fetched = false;
    const int base = tile * kRows;
    __syncthreads();  // the tile before is done with shared memory
#pragma unroll 4
    for (int i = threadIdx.x; i < volume * kRows; i += threads) {
      const int k = i / kRows, row = base + i % kRows;
      if (row < count) {
        copy_4(source + i, task.table + k * task.capacity + row);
      } else {
        source[i] = -1;
      }
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();

    int issued = 0, issue_stage = 0;
    const auto issue = [&] {
      if (issued < volume) {
        const int* in = source + issued * kRows + first_row;
        const uint32_t to = place + issue_stage * kStageBytes;
        constexpr int kMine = (kRows + row_step - 1) / row_step;
        int mine[kMine];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          if (kRows % row_step == 0 || first_row + i * row_step < kRows) mine[i] = in[i * row_step];
        }
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          if (kRows % row_step == 0 || first_row + i * row_step < kRows) {
            gather_16(to + i * row_step * kSpan,
                      features + uint64_t{static_cast<unsigned>(mine[i])} * kRowBytes,
                      mine[i] >= 0);
          }
        }
      }
      commit_copies();
      ++issued;
      if (++issue_stage == stages) issue_stage = 0;
    };
    // Two stages less than there are: one is read, one may still be.
    for (int i = 0; i < stages - 2; ++i) issue();

    Sum acc[kRows / 2];
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) acc[i] = Sum(0);
    int stage = 0;
    for (int first = 0; first < volume; first += kBuffers) {
#pragma unroll
      for (int d = 0; d < kBuffers; ++d) {
        const int k = first + d;
        if (k >= volume) break;
        // Stage k has arrived for all; the products over stage k - 2 are done and its place is free.
        if (stages == kMaxStages) {
          wait_copies<kMaxStages - 3>();
        } else {
          wait_copies<0>();
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        meet();
        issue();
        const uint32_t rows = ring + stage * kStageBytes;
        group_fence();
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const uint32_t at = rows + s * 32 / kSpan * (kRows * kSpan) + s * 32 % kSpan;
          group_multiply(acc, left[d][s], describe(at));
        }
        group_commit();
        group_wait<1>();
        if (k + 2 < volume) fetch(k + 2, left[(d + 2) % kBuffers]);
        if (++stage == stages) stage = 0;
      }
    }
    group_wait<0>();
    wait_copies<0>();

    // Sums go through shared memory: rows of all channels.
    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared);
    const int channel = group * 64 + (warp & 3) * 16 + g;
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int row = i / 4 * 8 + quad * 2 + i % 2;
      sums[row * row_floats + channel + i / 2 % 2 * 8] = static_cast<float>(acc[i]);
    }
    __syncthreads();
    finish_tile<2>(t, base, min(kRows, count - base), column_base, kGroups == 2 ? 4 : 3,
                   row_floats, sums, scale, bias, threadIdx.x, threads);
  }
}

template <class Sum, int kParts, int kRows, int kGroups>
cudaError_t launch(const ConvolutionTask& task, const PackedLayout& layout, const Device& device,
                   bool weigh, int64_t* cost, cudaStream_t stream) {
  TileTask t = describe_task(task, layout);
  constexpr int kStageBytes = kParts * 64 * kRows, kColumns = kGroups * 64;
  constexpr int kSumsBytes = kRows * (kColumns + 4) * 4;
  const int table_bytes = task.volume * kRows * 4, epilogue_bytes = kColumns * 8;
  t.stages = kMaxStages;
  const auto ring = [&] { return std::max(t.stages * kStageBytes, kSumsBytes); };
  while (t.stages > 3 && ring() + table_bytes + epilogue_bytes > device.shared_bytes) --t.stages;
  t.epilogue_offset = ring();
  t.table_offset = t.epilogue_offset + epilogue_bytes;
  const int shared = t.table_offset + table_bytes;
  *cost = INT64_MAX;
  if (shared > device.shared_bytes) return weigh ? cudaSuccess : cudaErrorInvalidValue;
  const auto kernel = group_kernel<Sum, kParts, kRows, kGroups>;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  int blocks = 0;  // of a multiprocessor
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kGroups * kGroup, shared);
  if (error != cudaSuccess) return error;
  if (blocks < 1) return weigh ? cudaSuccess : cudaErrorInvalidValue;
  const int64_t tiles = (task.capacity + kRows - 1) / kRows, all = tiles * layout.blocks;
  const int64_t slots = int64_t{device.multiprocessors} * blocks;
  if (weigh) {
    // Passes, times the tiles that share a multiprocessor in one, times what a tile takes.
    const int64_t beside = (all + device.multiprocessors - 1) / device.multiprocessors;
    *cost = (all + slots - 1) / slots * std::min<int64_t>(blocks, beside) * (kRows + 16);
    return cudaSuccess;
  }
  const int64_t x = std::max<int64_t>(1, std::min(tiles, slots / layout.blocks));
  return launch_overlapped(kernel, dim3(static_cast<unsigned>(x), layout.blocks),
                           dim3(kGroups * kGroup), shared, task.overlap, stream, t);
}

// Takes the number of rows of a tile with which the device is done first.
template <class Sum, int kParts, int kGroups>
cudaError_t by_rows(const ConvolutionTask& task, const PackedLayout& layout, const Device& device,
                    cudaStream_t stream) {
  int64_t few, many;
  cudaError_t error =
      launch<Sum, kParts, 80, kGroups>(task, layout, device, true, &few, stream);
  if (error != cudaSuccess) return error;
  error = launch<Sum, kParts, 128, kGroups>(task, layout, device, true, &many, stream);
  if (error != cudaSuccess) return error;
  return many < few ? launch<Sum, kParts, 128, kGroups>(task, layout, device, false, &many, stream)
                    : launch<Sum, kParts, 80, kGroups>(task, layout, device, false, &few, stream);
}

template <class Sum, int kParts>
cudaError_t by_groups(const ConvolutionTask& task, const PackedLayout& layout,
                      const Device& device, cudaStream_t stream) {
  return layout.columns == 128 ? by_rows<Sum, kParts, 2>(task, layout, device, stream)
                               : by_rows<Sum, kParts, 1>(task, layout, device, stream);
}

}  // namespace

cudaError_t convolve_wgmma(const ConvolutionTask& task, const Device& device,
                           cudaStream_t stream) {
  const PackedLayout layout = packed_layout(task.type, task.in_channels, task.out_channels);
  if (task.type == DType::i8) return by_groups<int, 2>(task, layout, device, stream);
  return layout.parts == 2 ? by_groups<float, 2>(task, layout, device, stream)
                           : by_groups<float, 4>(task, layout, device, stream);
}

}  // namespace s4d::sparse::cuda
