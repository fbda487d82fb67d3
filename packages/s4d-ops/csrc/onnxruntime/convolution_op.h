// `s4d.fused::Convolution` and `::ConvolutionAdd` on CUDA: half precision, channels last.
//
//   Convolution(input (N, H, W, C), weight (K, R, S, C), bias (K)) -> (N, Ho, Wo, K)
//   ConvolutionAdd(the same, residual (N, Ho, Wo, K))
//   attributes stride_h, stride_w, pad_h, pad_w, relu: integers
//
// Not part of any file's contract: s4d-runtime puts them into a graph while it loads it.
#pragma once

#include "ort_abi.h"

namespace s4d_ort {

// With or without the residual.
const CustomOp* convolution_op(bool residual);

}  // namespace s4d_ort
