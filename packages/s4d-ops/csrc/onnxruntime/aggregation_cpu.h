// The CPU execution provider's side of the operator.
#pragma once

#include "aggregation_op.h"

namespace s4d_ort {

Provider cpu_provider();

}  // namespace s4d_ort
