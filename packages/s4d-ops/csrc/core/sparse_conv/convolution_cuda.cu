#include "convolution_cuda.h"

#include "convolution_launch.h"

namespace s4d::sparse::cuda {

namespace {

constexpr int kMaxVolume = 1024;

bool known(DType type) {
  return type == DType::f32 || type == DType::f16 || type == DType::i8;
}

}  // namespace

TileChoice choose_tiles(const ConvolutionTask& task) {
  const PackedLayout layout = packed_layout(task.type, task.in_channels, task.out_channels);
  const int64_t bytes = layout.slab_bytes * layout.parts * layout.groups * task.volume;
  return {1, layout.columns == 128 ? 12 : layout.columns == 64 ? 16 : 8, 4, 32768, bytes <= 65536};
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
  return convolve_tiles(task, choose_tiles(task), stream);
}

}  // namespace s4d::sparse::cuda
