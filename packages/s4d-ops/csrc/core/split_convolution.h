// Convolution in float32's accuracy on half-precision tensor cores ("fp32x3"), on CUDA.
//
// A float32 value is held as two halves: the nearest half and, times 2^11, the nearest half of what
// is left: 22 of its 24 bits. A product is the sum of three: high x high, low x high, high x low.
// Tensor cores cut off bits where they add to a long sum, so they form sums of 16 products only,
// and float32 additions, which round to nearest, make the long sum. Values beyond +-65504 become
// NaN; below 2^-14 the error is 2^-36 at most.
//
// Split tensors are channels last and have the size of float32 tensors: for every 8 channels,
// 8 high halves and then 8 low ones.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace s4d {

constexpr int kSplitGroup = 8;   // channels whose high and low parts lie together
constexpr int kSplitDepth = 32;  // products of a step

enum class SplitResidual { none, single, split };

struct SplitConvolution {
  std::array<int64_t, 4> input_size{};   // n, h, w, c; c is a multiple of 8
  std::array<int64_t, 4> output_size{};  // n, h, w, channels; these too
  std::array<int, 2> kernel{1, 1};       // height, width
  std::array<int, 2> stride{1, 1};
  std::array<int, 2> pad{0, 0};
  bool relu = false;
  bool split_output = false;  // else float32
  SplitResidual residual_kind = SplitResidual::none;
  bool plain_input = false;  // float32, which is split on the way
  const void* input = nullptr;    // split, or float32
  // One row per output channel: kernel height, width, channels, split in groups of 8 as the input,
  // filled with zeros to a multiple of 32. The low parts are not scaled. At a multiple of 16 bytes,
  // as all of these.
  const void* weight = nullptr;
  const float* finish = nullptr;  // (2, channels): bias, then the factor of the weights' scale
  const void* residual = nullptr;
  void* output = nullptr;
  void* stream = nullptr;  // cudaStream_t
};

// How the work is divided. `automatic` takes what is best for the shape.
enum class SplitTile { automatic, large, tall, small, flat };

// output = relu(convolution(input, weight) * factor + bias + residual). Empty string on success.
// A plain input takes the small tiles: it is meant for layers on few rows.
// Nothing is allocated and nothing synchronises. Needs compute capability 8.0.
std::string split_convolution_cuda(const SplitConvolution& args,
                                   SplitTile tile = SplitTile::automatic);

// Splits rows of float32 channels; channels are filled with zeros to a multiple of 8.
std::string split_values_cuda(const float* input, int64_t rows, int channels, void* output,
                              void* stream);

// Largest values of windows, of a split tensor; what lies outside does not count.
struct SplitPool {
  std::array<int64_t, 4> input_size{};   // n, h, w, c; c is a multiple of 8
  std::array<int64_t, 4> output_size{};  // n, h, w, c
  std::array<int, 2> kernel{1, 1};
  std::array<int, 2> stride{1, 1};
  std::array<int, 2> pad{0, 0};
  bool split_output = false;  // else float32
  const void* input = nullptr;
  void* output = nullptr;
  void* stream = nullptr;
};

std::string split_pool_cuda(const SplitPool& args);

}  // namespace s4d
