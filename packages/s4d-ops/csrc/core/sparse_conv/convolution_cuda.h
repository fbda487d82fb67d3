// Sparse convolution on the device: implicit GEMM over a table, output stationary. Half and int8 on
// tensor cores (sums in float32 and int32), float32 on the ordinary units.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../types.h"
#include "convolution.h"

namespace s4d::sparse::cuda {

// Feature rows lie padded_channels apart; the padding is zero on input and written as zero.
// f16: a multiple of 16, i8: of 32, f32: of 4.
int32_t padded_channels(DType type, int32_t channels);

// Bytes of packed weights, 0 for a type other than f32, f16, i8. Their order depends on the device:
// pack where they are used.
int64_t packed_weight_bytes(DType type, int32_t volume, int32_t in_channels, int32_t out_channels);

// `weight` is (out, volume, in) of `source`: f32 or f16 for type f32 and f16; i8 (codes from -127
// to 127, checked by the caller) for i8. `transposed` packs for the gradient of the features:
// reads out_channels, writes in_channels, and the convolution then runs over the transposed table
// with in and out exchanged.
cudaError_t pack_weights(DType type, const void* weight, DType source, int32_t volume,
                         int32_t in_channels, int32_t out_channels, bool transposed, void* packed,
                         cudaStream_t stream);

struct ConvolutionTask {
  DType type = DType::f16;         // of features and weights: f32, f16 or i8
  const void* features = nullptr;  // (in_rows, padded_channels(type, in_channels))
  int32_t in_channels = 0;         // any
  int32_t out_channels = 0;        // any
  const void* weight = nullptr;    // packed, same type and sizes
  const int32_t* table = nullptr;  // (volume, capacity)
  int32_t volume = 0;                // at most 1024
  const int32_t* out_count = nullptr;
  int64_t capacity = 0;          // output rows
  const float* scale = nullptr;  // (out_channels), i8: input range / 127 * channel range / 127
  const float* bias = nullptr;   // (out_channels), may be null

  // y = activation(q1(sum * scale + bias) + q2(residual)); q1 and q2 round to the int8 grid of
  // these ranges and back, as an int8 Add does; 0 leaves the value as it is.
  Features residual;  // (capacity, padded_channels(residual.type, out_channels)), may be null
  float sum_range = 0.0f;
  float residual_range = 0.0f;
  Activation activation = Activation::none;
  float slope = 0.01f;  // leaky_relu

  // The weights, bias and scale were complete before the work just ahead on this stream began (an
  // engine's constants): they are then fetched while that work still runs.
  bool settled_weights = false;
  // Start while the work just ahead on the stream ends (compute capability 9.0 on). False for the
  // first convolution after the stream has waited for an event.
  bool overlap = true;

  Features output;  // written, f32, f16 or i8; may be the residual's memory, never the input's
  // With an f32 output of a multiple of 8 channels, on tensor cores: the output also as two halves a
  // value, rows of 2 * out_channels: all high parts, then what they leave (split_rows makes the same
  // of an f32 output). May be null; if not, output.data may be null.
  void* halves = nullptr;
};

cudaError_t convolve(const ConvolutionTask& task, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
