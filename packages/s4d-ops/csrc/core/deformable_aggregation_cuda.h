// CUDA kernels of deformable aggregation: host entry points. See deformable_aggregation.h for the
// meaning of every tensor. Pointers are device pointers, `stream` is a cudaStream_t, nothing
// synchronises, and nothing is allocated: both calls can be captured into a CUDA graph.
#pragma once

#include <cstdint>
#include <string>

#include "deformable_aggregation.h"

namespace s4d {

// Empty string on success, else one sentence. The result is bit-equal from run to run: no atomics,
// a fixed order of summation. A level that does not lie inside the feature rows contributes
// nothing (the level tables are on the device, so the host cannot refuse them).
std::string aggregation_forward_cuda(const AggregationForward& args);

// Bytes of device scratch memory that aggregation_backward_cuda needs in args.workspace (16-byte
// aligned). 0 for fp32 features without `deterministic`; 4 bytes per feature element for fp16 and
// bf16 features, whose gradient is summed in fp32; 8 bytes per element with `deterministic`.
int64_t aggregation_backward_workspace(const AggregationBackward& args);

// Every element of every wanted gradient is written. Gradients of locations and weights are bit-
// equal from run to run. Gradients of features are summed with atomics in an order that varies,
// unless args.deterministic: then sums are formed in 64-bit integers (fixed point with a step of
// at most 2^-59 * A * P * N * L * max|weights| * max|grad_output|, or 2^-120 if that is more),
// whose result does not depend on order. If weights or grad_output hold a NaN or an infinity, the
// deterministic gradient of features is NaN everywhere.
std::string aggregation_backward_cuda(const AggregationBackward& args);

}  // namespace s4d
