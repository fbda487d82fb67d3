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
  int minor = 0;
  if (d.error == cudaSuccess) {
    d.error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number);
  }
  d.overlaps = major >= 9;
  d.wgmma = major == 9 && minor == 0;
  return d;
}

// From measurements on an H200: as many warps as do the rows in one pass, if the registers allow it;
// 32 rows a warp unless that leaves a multiprocessor with too few warps.
TileChoice choose_tiles(const ConvolutionTask& task, const Device& device) {
  const PackedLayout layout = packed_layout(task.type, task.in_channels, task.out_channels);
  const int64_t bytes = layout.slab_bytes * layout.parts * layout.groups * task.volume;
  const int width = layout.columns % 64 == 0 ? 64 : layout.columns % 32 == 0 ? 32 : 16;
  TileChoice choice;
  choice.tiles = layout.columns == 128 ? 1 : 2;
  const int64_t tiles = (task.capacity + 16 * choice.tiles - 1) / (16 * choice.tiles);
  const int64_t wanted =
      (tiles + device.multiprocessors - 1) / device.multiprocessors * (layout.columns / width);
  const int block = width == 64 ? (choice.tiles == 2 ? 8 : 16) : 10;
  const int most = width == 64 ? block : 20;
  const int warps = static_cast<int>(std::clamp<int64_t>(wanted, 4, most));
  choice.blocks = (warps + block - 1) / block;
  choice.warps = (warps + choice.blocks - 1) / choice.blocks;
  choice.resident = bytes <= 114688;
  choice.stage_bytes = 32768;
  return choice;
}

cudaError_t convolve_tiles(const ConvolutionTask& task, const TileChoice& choice,
                           cudaStream_t stream) {
  return task.type == DType::i8 ? convolve_tiles_int8(task, choice, stream)
                                : convolve_tiles_half(task, choice, stream);
}

bool wgmma_serves(DType type, int32_t volume, int32_t in_channels, int32_t out_channels) {
#ifdef S4D_WITH_WGMMA
  if (type != DType::f16 && type != DType::i8) return false;
  const PackedLayout layout = packed_layout(type, in_channels, out_channels);
  // Rows of 64 bytes are faster with the other kernel, as measured on an H200.
  return layout.parts >= 2 && layout.groups == 1 && volume <= 64 &&
         (layout.columns == 64 || layout.columns == 128) &&
         layout.row_bytes <= (type == DType::f16 ? 256 : 128) && current_device().wgmma;
#else
  (void)type, (void)volume, (void)in_channels, (void)out_channels;
  return false;
#endif
}

cudaError_t convolve(const ConvolutionTask& task, cudaStream_t stream) {
  if (!known(task.type) || !known(task.output.type) ||
      (task.residual.data && !known(task.residual.type)) || task.in_channels < 1 ||
      task.out_channels < 1 || task.volume < 1 || task.volume > kMaxVolume || task.capacity < 0 ||
      task.capacity > INT32_MAX / 4) {
    return cudaErrorInvalidValue;
  }
  if (task.halves && (task.type == DType::f32 || task.output.type != DType::f32 ||
                      task.out_channels % 8 != 0)) {
    return cudaErrorInvalidValue;
  }
  if (task.capacity == 0) return cudaSuccess;
  if (task.type == DType::f32) return convolve_float(task, stream);
  const Device device = current_device();
  if (device.error != cudaSuccess) return device.error;
  if (wgmma_serves(task.type, task.volume, task.in_channels, task.out_channels)) {
    return convolve_wgmma(task, device, stream);
  }
  return convolve_tiles(task, choose_tiles(task, device), stream);
}

}  // namespace s4d::sparse::cuda
