// Small steps around the sparse convolution core on the device. The rules of sparse_cuda.h hold.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../types.h"

namespace s4d::sparse::cuda {

// *to = value, in stream order, without host memory that would have to outlive the call.
cudaError_t store_int(int32_t* to, int32_t value, cudaStream_t stream);

// Adds to bad[0] the number of values of (min(*count, capacity), channels) f32 or f16 features
// that are NaN, infinite, or, with `as_half`, too large for half precision.
cudaError_t count_not_finite(const void* features, DType type, const int32_t* count,
                             int64_t capacity, int32_t channels, bool as_half, int32_t* bad,
                             cudaStream_t stream);

// needed[i] = counts[i]; where *lost is not 0, all counts then become 0. After an overflow of some
// level the rows that were kept still name neighbours that were not, so nothing may follow them.
cudaError_t guard_counts(int32_t* counts, int32_t number, const int32_t* lost, int32_t* needed,
                         cudaStream_t stream);

// Rows of `channels` float32, padded as such, become rows of 2 * channels half, padded as such: each
// value rounded to half, and beside it what the rounding left, again as half. A half convolution with
// its weights twice over then reads the values to 22 bits. Values beyond half's range are cut to
// twice that range. `overlap` as ConvolutionTask::overlap.
cudaError_t split_rows(const float* from, const int32_t* count, int64_t capacity, int32_t channels,
                       void* to, bool overlap, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
