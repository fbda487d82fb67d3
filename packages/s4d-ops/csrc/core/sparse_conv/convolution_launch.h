// How a tensor-core convolution is launched: layout of packed weights and the choice of kernel.
#pragma once

#include "convolution_cuda.h"

namespace s4d::sparse::cuda {

// Packed weights of f16 and i8: blocks of `columns` output channels; in each, slabs of `piece`
// bytes of depth at one offset, in the order the kernel walks: groups of depth, offsets, the parts
// of a group; in each slab, operand order.
struct PackedLayout {
  int piece;        // 32 or 64 bytes
  int row_bytes;    // of a feature row
  int parts;        // slabs of an offset in a group: 1, 2 or 4
  int groups;       // row_bytes / (piece * parts)
  int all_columns;  // output channels padded to 16
  int columns;      // of a block, at most 128
  int blocks;
  int64_t slab_bytes = 0;
};
PackedLayout packed_layout(DType type, int32_t in_channels, int32_t out_channels);

struct Device {
  int multiprocessors = 0;
  int shared_bytes = 0;   // of a block, at most
  bool overlaps = false;  // kernels may start before the one ahead has ended
  bool wgmma = false;     // has Hopper's warpgroup instructions
  cudaError_t error = cudaSuccess;
};
Device current_device();

struct TileChoice {
  int tiles;          // 16-row tiles of a warp, 1 or 2
  int warps;          // of a block, at most
  int blocks;         // of a multiprocessor, at most
  int stage_bytes;    // of the ring, at most
  bool resident;      // all weights in shared memory, where they fit
};
TileChoice choose_tiles(const ConvolutionTask& task, const Device& device);
cudaError_t convolve_tiles(const ConvolutionTask& task, const TileChoice& choice,
                           cudaStream_t stream);

cudaError_t convolve_tiles_half(const ConvolutionTask& task, const TileChoice& choice,
                                cudaStream_t stream);
cudaError_t convolve_tiles_int8(const ConvolutionTask& task, const TileChoice& choice,
                                cudaStream_t stream);

// Wide layers on a Hopper device, where the library was built for it: another kernel, and another
// order inside a slab of packed weights.
bool wgmma_serves(DType type, int32_t volume, int32_t in_channels, int32_t out_channels);
cudaError_t convolve_wgmma(const ConvolutionTask& task, const Device& device, cudaStream_t stream);

cudaError_t convolve_float(const ConvolutionTask& task, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
