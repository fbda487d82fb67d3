#include "layout_cuda.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;

__global__ void gather_kernel(const __half* features, const int32_t* order, const int32_t* count,
                              int32_t channels, int32_t padded, __half* out) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t row = at / padded;
  if (row >= *count) return;
  const int channel = static_cast<int>(at % padded);
  out[at] = channel < channels ? features[int64_t{order[row]} * channels + channel]
                               : __float2half(0.0f);
}

// Neighbouring threads take neighbouring rows (sorted: neighbours along the last axis).
__global__ void scatter_kernel(const __half* features, const int4* rows, const int32_t* count,
                               int32_t channels, int32_t a, int32_t b, int32_t c, __half* dense) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= *count) return;
  const int4 r = rows[row];
  const int64_t plane = int64_t{a} * b * c;
  const int64_t cell = (int64_t{r.y} * b + r.z) * c + r.w;
  const int first = blockIdx.y * 8;
  for (int i = 0; i < 8 && first + i < channels; ++i) {
    dense[(int64_t{r.x} * channels + first + i) * plane + cell] =
        features[row * channels + first + i];
  }
}

int blocks_for(int64_t items) { return static_cast<int>((items + kThreads - 1) / kThreads); }

}  // namespace

cudaError_t gather_rows(const __half* features, const int32_t* order, const int32_t* count,
                        int64_t capacity, int32_t channels, int32_t padded, __half* out,
                        cudaStream_t stream) {
  if (capacity == 0) return cudaSuccess;
  gather_kernel<<<blocks_for(capacity * padded), kThreads, 0, stream>>>(features, order, count,
                                                                        channels, padded, out);
  return cudaGetLastError();
}

cudaError_t scatter_dense(const __half* features, const int32_t* indices, const int32_t* count,
                          int64_t capacity, int32_t channels, int32_t batch, int32_t a, int32_t b,
                          int32_t c, __half* dense, cudaStream_t stream) {
  cudaMemsetAsync(dense, 0, int64_t{batch} * channels * a * b * c * sizeof(__half), stream);
  if (capacity == 0) return cudaGetLastError();
  const dim3 grid(blocks_for(capacity), (channels + 7) / 8);
  scatter_kernel<<<grid, kThreads, 0, stream>>>(features, reinterpret_cast<const int4*>(indices),
                                                count, channels, a, b, c, dense);
  return cudaGetLastError();
}

}  // namespace s4d::sparse::cuda
