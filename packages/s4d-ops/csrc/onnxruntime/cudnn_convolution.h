// Convolution, bias, residual sum and ReLU in one call of cuDNN, half precision, channels last.
//
// cuDNN is not linked: ONNX Runtime's CUDA provider has brought it into the process, and the few
// functions used are looked up there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace s4d_ort {

struct ConvolutionShape {
  std::array<int64_t, 4> input{};   // n, h, w, c
  std::array<int64_t, 4> weight{};  // k, r, s, c
  std::array<int64_t, 4> output{};  // n, h, w, k
  std::array<int, 2> stride{1, 1};
  std::array<int, 2> pad{0, 0};
  bool residual = false;
  bool relu = false;
};

struct ConvolutionData {
  const void* input = nullptr;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* residual = nullptr;  // the output's shape, or null
  void* output = nullptr;
  void* stream = nullptr;
};

// A convolution whose descriptors are made once. Not for several threads at a time.
class CudnnConvolution {
 public:
  CudnnConvolution();
  ~CudnnConvolution();
  // Empty, or what went wrong. The first call on a stream may allocate memory; later ones with the
  // same shape do not, so they may be captured.
  std::string run(const ConvolutionShape& shape, const ConvolutionData& data);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace s4d_ort
