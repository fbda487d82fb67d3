// Sparse convolution on tensor cores: implicit GEMM, output stationary, half or int8.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace s4d::sparse::cuda {

struct ConvolutionTask {
  bool int8 = false;
  // (in_rows, channels): half, channels a multiple of 16, or int8 codes, a multiple of 32.
  const void* features = nullptr;
  int32_t in_channels = 0;
  // (volume, out_channels, in_channels), same element type. out_channels: a multiple of 16, <= 128.
  const void* weight = nullptr;
  int32_t out_channels = 0;
  const int32_t* table = nullptr;  // (volume, capacity)
  int32_t volume = 0;              // <= 64
  const int32_t* out_count = nullptr;  // device
  int64_t capacity = 0;
  const float* scale = nullptr;  // int8: per output channel, input scale * weight scale
  const float* bias = nullptr;
  const void* residual = nullptr;  // (capacity, out_channels) half, or codes with residual_scale
  bool residual_int8 = false;
  float residual_scale = 1.0f;
  float residual_range = 0.0f;  // 0: not rounded before the sum
  float sum_range = 0.0f;
  bool relu = false;
  void* output = nullptr;  // half, or codes of output_range
  bool output_int8 = false;
  float output_range = 0.0f;
};

cudaError_t convolve(const ConvolutionTask& task, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
