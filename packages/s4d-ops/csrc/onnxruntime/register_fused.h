// Operators that s4d-runtime puts into graphs for the CUDA provider, in the domain `s4d.fused`.
#pragma once

#include "ort_abi.h"

namespace s4d_ort {

OrtStatus* register_fused(OrtSessionOptions* options, const OrtApiBase* base);

}  // namespace s4d_ort
