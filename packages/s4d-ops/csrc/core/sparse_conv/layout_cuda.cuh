// Rows in and out of the sorted order: gather with channel padding, scatter to a dense map.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace s4d::sparse::cuda {

// out (capacity, padded) half: row i is features[order[i]], zeros after `channels`.
cudaError_t gather_rows(const __half* features, const int32_t* order, const int32_t* count,
                        int64_t capacity, int32_t channels, int32_t padded, __half* out,
                        cudaStream_t stream);

// dense (batch, channels, a, b, c) half, every element written.
cudaError_t scatter_dense(const __half* features, const int32_t* indices, const int32_t* count,
                          int64_t capacity, int32_t channels, int32_t batch, int32_t a, int32_t b,
                          int32_t c, __half* dense, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
