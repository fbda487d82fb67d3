// Gradient of a convolution's weights on the device. (That of the features is a convolution over
// the transposed table with transposed weights.)
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../types.h"

namespace s4d::sparse::cuda {

struct WeightGradientTask {
  DType type = DType::f32;         // f32 or f16, of features and grad
  const void* features = nullptr;  // (in_rows, padded_channels(type, in_channels))
  const void* grad = nullptr;      // (capacity, padded_channels(type, out_channels)), of the output
  int32_t in_channels = 0, out_channels = 0;
  const int32_t* table = nullptr;  // (volume, capacity)
  int32_t volume = 0;
  const int32_t* out_count = nullptr;
  int64_t capacity = 0;
  float* gradient = nullptr;       // (out, volume, in) f32, written
  void* scratch = nullptr;         // weight_gradient_bytes
};

int64_t weight_gradient_bytes(int32_t volume, int32_t in_channels, int32_t out_channels,
                              int64_t capacity);
cudaError_t weight_gradient(const WeightGradientTask& task, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
