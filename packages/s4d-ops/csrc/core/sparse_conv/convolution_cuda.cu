#include "convolution_cuda.h"

#include <algorithm>

#include "convolution_launch.h"

namespace s4d::sparse::cuda {

namespace {

constexpr int kMaxVolume = 1024;

bool known(DType type) {
  return type == DType::f32 || type == DType::f16 || type == DType::i8;
}

}  // namespace

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
  int major = 0;
  if (d.error == cudaSuccess) {
    d.error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number);
  }
  d.overlaps = major >= 9;
  return d;
}

// From measurements on an H200: as many warps as do the rows in one pass, if the registers allow it,
// in blocks of about ten; all weights in shared memory where that leaves room for such blocks.
TileChoice choose_tiles(const ConvolutionTask& task, const Device& device) {
  const PackedLayout layout = packed_layout(task.type, task.in_channels, task.out_channels);
  const int64_t bytes = layout.slab_bytes * layout.parts * layout.groups * task.volume;
  const int width = layout.columns % 64 == 0 ? 64 : layout.columns % 32 == 0 ? 32 : 16;
  const int rows = width == 64 ? 16 : 32;  // of a warp
  const int64_t tiles = (task.capacity + rows - 1) / rows;
  const int64_t wanted =
      (tiles + device.multiprocessors - 1) / device.multiprocessors * (layout.columns / width);
  const int most = width == 16 ? 30 : width == 32 && layout.piece == 32 ? 20 : 16;
  const int warps = static_cast<int>(std::clamp<int64_t>(wanted, 4, most));
  TileChoice choice;
  choice.blocks = width == 64 ? 1 : (warps + 9) / 10;
  choice.warps = (warps + choice.blocks - 1) / choice.blocks;
  choice.resident = width > 16 && bytes <= 114688;
  choice.stage_bytes = width > 16 ? 32768 : 16384;
  return choice;
}

cudaError_t convolve_tiles(const ConvolutionTask& task, const TileChoice& choice,
                           cudaStream_t stream) {
  return task.type == DType::i8 ? convolve_tiles_int8(task, choice, stream)
                                : convolve_tiles_half(task, choice, stream);
}

cudaError_t convolve(const ConvolutionTask& task, cudaStream_t stream) {
  if (!known(task.type) || !known(task.output.type) ||
      (task.residual.data && !known(task.residual.type)) || task.in_channels < 1 ||
      task.out_channels < 1 || task.volume < 1 || task.volume > kMaxVolume || task.capacity < 0 ||
      task.capacity > INT32_MAX / 4) {
    return cudaErrorInvalidValue;
  }
  if (task.capacity == 0) return cudaSuccess;
  if (task.type == DType::f32) return convolve_float(task, stream);
  const Device device = current_device();
  if (device.error != cudaSuccess) return device.error;
  return convolve_tiles(task, choose_tiles(task, device), stream);
}

}  // namespace s4d::sparse::cuda
