// `s4d.fused::SplitConvolution`, `::SplitConvolutionAdd`, `::SplitMaxPool`, `::SplitLinear` and
// `::SplitValues` on CUDA: float32's accuracy on half-precision tensor cores, channels last; see
// core/split_convolution.h. Tensors are of type float32, split ones too: ONNX Runtime may copy them
// and nothing else.
//
//   SplitConvolution(input (N, H, W, C) split, weight (K, depth) split, finish (2, K))
//     -> (N, Ho, Wo, K)
//   SplitConvolutionAdd(the same, residual (N, Ho, Wo, K))
//   SplitMaxPool(input (N, H, W, C) split) -> (N, Ho, Wo, C)
//   SplitLinear(input (..., C) float32, weight (K, depth) split, finish (2, K)) -> (..., K) float32
//   SplitValues(input (N, H, W, C)) -> (N, H, W, C filled to a multiple of 8) split
//   attributes kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, relu, split (the result),
//   split_residual: integers
//
// Not part of any file's contract: s4d-runtime puts them into a graph while it loads it.
#pragma once

#include <vector>

#include "ort_abi.h"

namespace s4d_ort {

std::vector<const CustomOp*> split_ops();

}  // namespace s4d_ort
