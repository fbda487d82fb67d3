#include "convolution_launch.cuh"

namespace s4d::sparse::cuda {

cudaError_t convolve_tiles_int8(const ConvolutionTask& task, const TileChoice& choice,
                                cudaStream_t stream) {
  const PackedLayout layout = packed_layout(task.type, task.in_channels, task.out_channels);
  return by_shape<int>(task, layout, choice, stream);
}

}  // namespace s4d::sparse::cuda
