#include "convolution_cuda.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kRows = 64;       // output rows of a block
constexpr int kThreads = 128;   // four warps, 16 rows each
constexpr int kMaxVolume = 64;
constexpr int kPad = 16;        // bytes after each shared row, against bank conflicts

__device__ inline void copy_16(void* shared, const void* global, bool active) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = active ? 16 : 0;  // the rest is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes));
}

__device__ inline void load_matrices(unsigned (&r)[4], const void* shared) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}

__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void multiply(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float rounded(float x, float range) {
  if (range <= 0.0f) return x;
  return fminf(fmaxf(rintf(x * (127.0f / range)), -127.0f), 127.0f) * (range / 127.0f);
}

__device__ inline int8_t code_of(float x, float range) {
  return static_cast<int8_t>(fminf(fmaxf(rintf(x * (127.0f / range)), -127.0f), 127.0f));
}

// N output channels, kBytes bytes of a feature row per step (in_channels may take several steps).
template <class Sum, int N, int kBytes>
__global__ void __launch_bounds__(kThreads) convolution_kernel(ConvolutionTask task) {
  constexpr int kStride = kBytes + kPad;
  constexpr int kStage = (kRows + N) * kStride;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ int32_t source[kMaxVolume][kRows];
  __shared__ int active[kMaxVolume];

  const int64_t first = int64_t{blockIdx.x} * kRows;
  const int64_t count = *task.out_count;
  if (first >= count) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;

  // Which offsets has this tile at all? Warp w looks at offsets w, w + 4, ...
  for (int k = warp; k < task.volume; k += kThreads / 32) {
    int any = 0;
    for (int row = lane; row < kRows; row += 32) {
      const int32_t in = first + row < count ? task.table[k * task.capacity + first + row] : -1;
      source[k][row] = in;
      any |= in >= 0;
    }
    any = __any_sync(~0u, any);
    if (lane == 0) active[k] = any;
  }
  __syncthreads();

  Sum sums[N / 8][4];
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = Sum(0);
  }

  const int element = task.int8 ? 1 : 2;
  const int row_bytes = task.in_channels * element;
  const int parts = row_bytes / kBytes;
  const auto* features = static_cast<const unsigned char*>(task.features);
  const auto* weight = static_cast<const unsigned char*>(task.weight);

  auto next_active = [&](int k) {
    while (k < task.volume && !active[k]) ++k;
    return k;
  };
  auto fetch = [&](int k, int part, int stage) {
    unsigned char* a = shared + stage * kStage;
    unsigned char* b = a + kRows * kStride;
    constexpr int pieces = kBytes / 16;
    for (int i = thread; i < kRows * pieces; i += kThreads) {
      const int row = i / pieces, piece = i % pieces;
      const int32_t in = source[k][row];
      const unsigned char* from =
          features + int64_t{in < 0 ? 0 : in} * row_bytes + part * kBytes + piece * 16;
      copy_16(a + row * kStride + piece * 16, from, in >= 0);
    }
    for (int i = thread; i < N * pieces; i += kThreads) {
      const int row = i / pieces, piece = i % pieces;
      const unsigned char* from =
          weight + (int64_t{k} * N + row) * row_bytes + part * kBytes + piece * 16;
      copy_16(b + row * kStride + piece * 16, from, true);
    }
    asm volatile("cp.async.commit_group;");
  };

  int k = next_active(0), part = 0, stage = 0;
  if (k < task.volume) fetch(k, part, stage);
  while (k < task.volume) {
    int next_k = k, next_part = part + 1;
    if (next_part == parts) {
      next_part = 0;
      next_k = next_active(k + 1);
    }
    if (next_k < task.volume) {
      fetch(next_k, next_part, stage ^ 1);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
    }
    __syncthreads();
    const unsigned char* a = shared + stage * kStage + warp * 16 * kStride;
    const unsigned char* b = shared + stage * kStage + kRows * kStride;
#pragma unroll
    for (int step = 0; step < kBytes / 32; ++step) {
      unsigned left[4];
      load_matrices(left, a + (lane & 15) * kStride + step * 32 + (lane >> 4) * 16);
#pragma unroll
      for (int n = 0; n < N / 16; ++n) {
        unsigned right[4];  // two column groups of 8: (k low, k high) each
        const int column = n * 16 + (lane & 7) + ((lane >> 4) << 3);
        load_matrices(right, b + column * kStride + step * 32 + ((lane >> 3) & 1) * 16);
        multiply(sums[2 * n], left, right[0], right[1]);
        multiply(sums[2 * n + 1], left, right[2], right[3]);
      }
    }
    __syncthreads();
    k = next_k;
    part = next_part;
    stage ^= 1;
  }

  // Thread holds rows lane / 4 and + 8 of its warp, columns 2 * (lane % 4) and the next of each 8.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + warp * 16 + (lane >> 2) + half * 8;
    if (row >= count) continue;
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
      const int column = n * 8 + (lane & 3) * 2;
      const int64_t at = row * N + column;
      float value[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        value[i] = static_cast<float>(sums[n][half * 2 + i]);
        if (task.scale) value[i] *= task.scale[column + i];
        if (task.bias) value[i] += task.bias[column + i];
        value[i] = rounded(value[i], task.sum_range);
        if (task.residual) {
          const float other =
              task.residual_int8
                  ? static_cast<float>(static_cast<const int8_t*>(task.residual)[at + i]) *
                        task.residual_scale
                  : __half2float(static_cast<const __half*>(task.residual)[at + i]);
          value[i] += rounded(other, task.residual_range);
        }
        if (task.relu) value[i] = value[i] < 0.0f ? 0.0f : value[i];
      }
      if (task.output_int8) {
        const char2 pair = make_char2(code_of(value[0], task.output_range),
                                      code_of(value[1], task.output_range));
        *reinterpret_cast<char2*>(static_cast<int8_t*>(task.output) + at) = pair;
      } else {
        *reinterpret_cast<__half2*>(static_cast<__half*>(task.output) + at) =
            __floats2half2_rn(value[0], value[1]);
      }
    }
  }
}

template <class Sum, int N, int kBytes>
cudaError_t launch(const ConvolutionTask& task, cudaStream_t stream) {
  constexpr int shared = 2 * (kRows + N) * (kBytes + kPad);
  auto kernel = convolution_kernel<Sum, N, kBytes>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  const int blocks = static_cast<int>((task.capacity + kRows - 1) / kRows);
  if (blocks > 0) kernel<<<blocks, kThreads, shared, stream>>>(task);
  return cudaGetLastError();
}

template <class Sum, int N>
cudaError_t choose_bytes(const ConvolutionTask& task, cudaStream_t stream) {
  const int bytes = task.in_channels * (task.int8 ? 1 : 2);
  if (bytes % 128 == 0) return launch<Sum, N, 128>(task, stream);
  if (bytes % 64 == 0) return launch<Sum, N, 64>(task, stream);
  if (bytes % 32 == 0) return launch<Sum, N, 32>(task, stream);
  return cudaErrorInvalidValue;
}

template <class Sum>
cudaError_t choose_columns(const ConvolutionTask& task, cudaStream_t stream) {
  switch (task.out_channels) {
    case 16: return choose_bytes<Sum, 16>(task, stream);
    case 32: return choose_bytes<Sum, 32>(task, stream);
    case 64: return choose_bytes<Sum, 64>(task, stream);
    case 128: return choose_bytes<Sum, 128>(task, stream);
    default: return cudaErrorInvalidValue;  // other widths are padded by the caller
  }
}

}  // namespace

cudaError_t convolve(const ConvolutionTask& task, cudaStream_t stream) {
  if (task.volume < 1 || task.volume > kMaxVolume) return cudaErrorInvalidValue;
  return task.int8 ? choose_columns<int>(task, stream) : choose_columns<float>(task, stream);
}

}  // namespace s4d::sparse::cuda
