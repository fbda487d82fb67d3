// Gradient of the weights of a sparse convolution. (The gradient of the features is a convolution
// over the transposed table with transposed PackedWeights.)
#pragma once

#include <cstdint>

#include "../types.h"

namespace s4d::sparse {

struct WeightGradient {
  DType type = DType::f32;         // f32 or f64, of all four matrices
  int64_t volume = 0;
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  const int32_t* table = nullptr;  // (volume, out_rows)
  int64_t out_rows = 0;
  const void* features = nullptr;     // (in_rows, in_channels)
  const void* grad_output = nullptr;  // (out_rows, out_channels)
  void* grad_weight = nullptr;        // (out_channels, volume, in_channels), every element written
  int threads = 0;
};

// Sums run over the output rows in order: the same bits for any number of threads.
void weight_gradient(const WeightGradient& task);

}  // namespace s4d::sparse
