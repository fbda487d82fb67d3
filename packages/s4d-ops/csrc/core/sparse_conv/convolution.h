// Sparse convolution over a rulebook on the CPU: implicit GEMM, output stationary.
//
// Each tile of output rows keeps its sums in cache. For every kernel offset the rows of the tile
// that have an input there are listed, gathered and multiplied with that offset's weights, so no
// work is spent on absent neighbours. Bias, residual and activation are applied once per tile.
#pragma once

#include <cstdint>
#include <vector>

#include "../types.h"
#include "geometry.h"
#include "kernels.h"

namespace s4d::sparse {

enum class Activation { none, relu, leaky_relu, sigmoid };

// Weights in the order the kernels read them: per offset, per panel of output channels,
// (input channel, panel width); zero padded. The arithmetic follows the type given to pack():
// f32 (features f32, f16 or i8), f64 (features f64) or i8 (exact int32 sums).
class PackedWeights {
 public:
  // `weight` is (out, volume, in) of `type` f32, f64 or i8 (codes from -127 to 127).
  // `channel_range`, i8 only: the range (amax) of each output channel, value = code * range / 127.
  // `transposed` packs for the gradient of the features: depth = out channels, columns = in.
  PackedWeights(const void* weight, DType type, int64_t volume, int64_t in_channels,
                int64_t out_channels, const float* channel_range = nullptr,
                bool transposed = false);

  DType type() const { return type_; }
  int64_t volume() const { return volume_; }
  int64_t depth() const { return depth_; }      // channels read
  int64_t columns() const { return columns_; }  // channels written
  int64_t padded_columns() const { return padded_columns_; }
  int64_t width() const { return width_; }
  int64_t padded_depth() const { return padded_depth_; }
  const std::vector<float>& channel_range() const { return channel_range_; }
  const char* panel(int64_t k, int64_t index) const {
    return storage_.data() + (k * panels() + index) * panel_bytes_;
  }
  int64_t panels() const { return padded_columns_ / width_; }
  int64_t bytes() const { return static_cast<int64_t>(storage_.size()); }

 private:
  DType type_;
  int64_t volume_, depth_, columns_, width_, padded_depth_, padded_columns_, panel_bytes_;
  std::vector<char> storage_;
  std::vector<float> channel_range_;
};

// A feature matrix. `range` is the amax of an i8 one: value = code * range / 127.
struct Features {
  const void* data = nullptr;
  DType type = DType::f32;
  float range = 0.0f;
};

struct Convolution {
  const PackedWeights* weights = nullptr;
  const int32_t* table = nullptr;  // (volume, out_rows), entries already checked
  int64_t out_rows = 0;

  // i8 weights: f32 and f16 input is quantised with `input.range` while it is gathered.
  Features input;                // (in_rows, depth)
  const void* bias = nullptr;    // (columns) f32, or f64 in f64 arithmetic; may be null
  Activation activation = Activation::none;
  float slope = 0.01f;           // leaky_relu

  // y = activation(q1(sum + bias) + q2(residual)); q1 and q2 quantise and restore with these
  // ranges, as an int8 Add does; 0 leaves the value as it is.
  Features residual;             // (out_rows, columns); may be null
  float sum_range = 0.0f;
  float residual_range = 0.0f;

  Features output;               // written; i8 needs a range
  int threads = 0;
};

// The caller has checked sizes and the table; impossible type combinations throw.
void convolve(const Convolution& task);

// output(rows, columns) as convolve's last step alone: activation(q1(a) + q2(b)), any types.
void add_features(const Features& a, float a_range, const Features& b, float b_range, int64_t count,
                  Activation activation, float slope, const Features& output, int threads);

}  // namespace s4d::sparse
