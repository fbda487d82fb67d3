// Host side of the tensor-core kernel: shared memory, grid, and the instance for a shape. Included by
// one source file per element type, since the instances take long to compile.
#pragma once

#include <algorithm>

#include "convolution_launch.h"
#include "convolution_tiles.cuh"

namespace s4d::sparse::cuda {

namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class Sum, int kPiece, int kParts, int kTiles, int kColumns, bool kResident>
cudaError_t launch(TileTask& t, int grid_columns, int warps, int blocks, int shared,
                   const Device& device, cudaStream_t stream) {
  const auto kernel = tile_kernel<Sum, kPiece, kParts, kTiles, kColumns, kResident>;
  cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  int resident = 0;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, warps * 32, shared);
  if (error != cudaSuccess) return error;
  if (resident < 1) return cudaErrorInvalidValue;
  const int slots = warps / (t.columns / kColumns);
  const int64_t tiles = (t.task.capacity + 16 * kTiles - 1) / (16 * kTiles);
  const int64_t most = int64_t{device.multiprocessors} * std::min(resident, blocks);
  const int64_t x = std::max<int64_t>(1, std::min(most, (tiles + slots - 1) / slots));
  return launch_overlapped(kernel, dim3(static_cast<unsigned>(x), grid_columns), dim3(warps * 32),
                           shared, device.overlaps && t.task.overlap, stream, t);
}

template <class Sum, int kPiece, int kParts, int kTiles, int kColumns>
cudaError_t place(const ConvolutionTask& task, const PackedLayout& layout, const TileChoice& choice,
                  cudaStream_t stream) {
  const Device device = current_device();
  if (device.error != cudaSuccess) return device.error;
  TileTask t = describe_task(task, layout);
  t.warp_bytes = std::max(task.volume * 16 * kTiles * 4, 16 * kTiles * row_floats(kColumns) * 4);
  const int slab_bytes = static_cast<int>(layout.slab_bytes);
  const int slabs = task.volume * kParts * layout.groups;
  const int groups = layout.columns / kColumns;
  const int epilogue = round_up(layout.columns * 8, 16);
  constexpr int kMaxWarps = max_threads(kTiles, kColumns) / 32;
  int warps = std::min(choice.warps, kMaxWarps) / groups * groups;
  warps = std::max(warps, groups);
  // Fewer warps where the kernel has very many offsets.
  while (warps > groups &&
         epilogue + kRing * slab_bytes + warps * t.warp_bytes > device.shared_bytes) {
    warps = std::max(warps / 2 / groups * groups, groups);
  }
  const int room = device.shared_bytes - epilogue - warps * t.warp_bytes;
  int weights;
  bool resident = false;
  const bool few = slabs < kRing - 1;  // the ring's first fill takes three stages of the weights
  if ((choice.resident || few) && int64_t{slabs} * slab_bytes <= room) {
    resident = true;
    t.stage_slabs = slabs;
    t.stages = 1;
    weights = slabs * slab_bytes;
  } else {
    const int stage = std::min(choice.stage_bytes, room / kRing);
    t.stage_slabs = std::max(1, std::min(stage / slab_bytes, slabs / (kRing - 1)));
    t.stages = (slabs + t.stage_slabs - 1) / t.stage_slabs;
    weights = kRing * t.stage_slabs * slab_bytes;
    if (few || weights > room) return cudaErrorInvalidValue;
  }
  t.epilogue_offset = weights;
  t.table_offset = weights + epilogue;
  const int shared = t.table_offset + warps * t.warp_bytes;
  return resident ? launch<Sum, kPiece, kParts, kTiles, kColumns, true>(t, layout.blocks, warps,
                                                                choice.blocks, shared, device,
                                                                stream)
                  : launch<Sum, kPiece, kParts, kTiles, kColumns, false>(t, layout.blocks, warps,
                                                                 choice.blocks, shared, device,
                                                                 stream);
}

// Wide results take 16 rows a warp, narrow ones 32: about the same number of sums a thread.
template <class Sum, int kPiece, int kParts>
cudaError_t by_columns(const ConvolutionTask& task, const PackedLayout& layout,
                       const TileChoice& choice, cudaStream_t stream) {
  if (layout.columns % 64 == 0) {
    return choice.tiles == 2 ? place<Sum, kPiece, kParts, 2, 64>(task, layout, choice, stream)
                             : place<Sum, kPiece, kParts, 1, 64>(task, layout, choice, stream);
  }
  if (layout.columns % 32 == 0) {
    return place<Sum, kPiece, kParts, 2, 32>(task, layout, choice, stream);
  }
  return place<Sum, kPiece, kParts, 2, 16>(task, layout, choice, stream);
}

template <class Sum>
cudaError_t by_shape(const ConvolutionTask& task, const PackedLayout& layout,
                     const TileChoice& choice, cudaStream_t stream) {
  if (layout.piece == 32) return by_columns<Sum, 32, 1>(task, layout, choice, stream);
  switch (layout.parts) {
    case 1: return by_columns<Sum, 64, 1>(task, layout, choice, stream);
    case 2: return by_columns<Sum, 64, 2>(task, layout, choice, stream);
    default: return by_columns<Sum, 64, 4>(task, layout, choice, stream);
  }
}

}  // namespace

}  // namespace s4d::sparse::cuda
