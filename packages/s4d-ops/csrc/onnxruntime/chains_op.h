// `s4d.fused::DenseChains` on CUDA: chains of small layers on the rows of one tensor.
//
//   DenseChains(input (..., C) float, parameters (P) float) -> (..., outputs of all chains)
//   attributes: branches (text, see core/dense_chains.h), epsilon (float), rank (dimensions that the
//   input must have, or 0)
//
// Not part of any file's contract: s4d-runtime puts it into a graph while it loads it.
#pragma once

#include "ort_abi.h"

namespace s4d_ort {

const CustomOp* dense_chains_op();

}  // namespace s4d_ort
