// The CUDA execution provider's side of the operator.
#pragma once

#include "aggregation_op.h"

namespace s4d_ort {

Provider cuda_provider();

}  // namespace s4d_ort
