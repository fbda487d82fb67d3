// Host side of the tensor-core kernel: shared memory, grid, and the instance for a shape. Included by
// one source file per element type, since the instances take long to compile.
#pragma once

#include <algorithm>

#include "convolution_launch.h"
#include "convolution_tiles.cuh"

namespace s4d::sparse::cuda {

namespace {

struct Device {
  int multiprocessors = 0;
  int shared_bytes = 0;  // of a block, at most
  cudaError_t error = cudaSuccess;
};

Device current_device() {
  Device d;
  int number = 0;
  d.error = cudaGetDevice(&number);
  if (d.error == cudaSuccess) {
    d.error = cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, number);
  }
  if (d.error == cudaSuccess) {
    d.error = cudaDeviceGetAttribute(&d.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                     number);
  }
  return d;
}

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class Sum, int kPiece, int kTiles, int kColumns, bool kResident>
cudaError_t launch(TileTask& t, int grid_columns, int warps, int blocks, int shared,
                   const Device& device, cudaStream_t stream) {
  constexpr int kAhead = kPiece == 32 ? 4 : kTiles == 2 ? 3 : 4;
  const auto kernel = tile_kernel<Sum, kPiece, kTiles, kColumns, kAhead, kResident>;
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
  kernel<<<dim3(static_cast<unsigned>(x), grid_columns), warps * 32, shared, stream>>>(t);
  return cudaGetLastError();
}

template <class Sum, int kPiece, int kTiles, int kColumns>
cudaError_t place(const ConvolutionTask& task, const PackedLayout& layout, const TileChoice& choice,
                  cudaStream_t stream) {
  const Device device = current_device();
  if (device.error != cudaSuccess) return device.error;
  TileTask t;
  t.task = task;
  t.row_bytes = layout.row_bytes;
  t.parts = layout.parts;
  t.columns = layout.columns;
  t.all_columns = layout.all_columns;
  t.out_stride = padded_channels(task.output.type, task.out_channels);
  t.residual_stride =
      task.residual.data ? padded_channels(task.residual.type, task.out_channels) : 0;
  t.warp_bytes = task.volume * 16 * kTiles * 4 + round_up((task.volume + 31) / 32 * 4, 16);
  const int slab_bytes = static_cast<int>(layout.slab_bytes);
  const int slabs = task.volume * layout.parts;
  const int groups = layout.columns / kColumns;
  const int epilogue = round_up(layout.columns * 8, 16);
  constexpr int kMaxWarps = (kTiles * kColumns >= 128 ? 256 : 512) / 32;
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
  if (choice.resident && int64_t{slabs} * slab_bytes <= room) {
    resident = true;
    t.stage_slabs = slabs;
    t.stages = 1;
    weights = slabs * slab_bytes;
  } else {
    const int stage = std::min(choice.stage_bytes, room / kRing);
    t.stage_slabs = std::min(std::max(1, stage / slab_bytes), slabs);
    t.stages = (slabs + t.stage_slabs - 1) / t.stage_slabs;
    weights = kRing * t.stage_slabs * slab_bytes;
    if (weights > room) return cudaErrorInvalidValue;
  }
  t.epilogue_offset = weights;
  t.table_offset = weights + epilogue;
  const int shared = t.table_offset + warps * t.warp_bytes;
  return resident ? launch<Sum, kPiece, kTiles, kColumns, true>(t, layout.blocks, warps,
                                                                choice.blocks, shared, device,
                                                                stream)
                  : launch<Sum, kPiece, kTiles, kColumns, false>(t, layout.blocks, warps,
                                                                 choice.blocks, shared, device,
                                                                 stream);
}

template <class Sum, int kPiece, int kTiles>
cudaError_t by_columns(const ConvolutionTask& task, const PackedLayout& layout,
                       const TileChoice& choice, cudaStream_t stream) {
  if (layout.columns % 64 == 0) return place<Sum, kPiece, kTiles, 64>(task, layout, choice, stream);
  if (layout.columns % 32 == 0) return place<Sum, kPiece, kTiles, 32>(task, layout, choice, stream);
  return place<Sum, kPiece, kTiles, 16>(task, layout, choice, stream);
}

template <class Sum>
cudaError_t by_shape(const ConvolutionTask& task, const PackedLayout& layout,
                     const TileChoice& choice, cudaStream_t stream) {
  if (layout.piece == 64) {
    return choice.tiles == 2 ? by_columns<Sum, 64, 2>(task, layout, choice, stream)
                             : by_columns<Sum, 64, 1>(task, layout, choice, stream);
  }
  return choice.tiles == 2 ? by_columns<Sum, 32, 2>(task, layout, choice, stream)
                           : by_columns<Sum, 32, 1>(task, layout, choice, stream);
}

}  // namespace

}  // namespace s4d::sparse::cuda
