#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "dense_chains.h"

namespace s4d {
namespace {

constexpr int kRows = 8;    // of a block; 900 rows are 113 blocks, one for most multiprocessors
constexpr int kStep = 4;    // input channels read from shared memory at once
constexpr int kAhead = 16;  // weights in flight

// One layer for kRows / (threads of a column) rows per thread. `from` and `to` are shared memory,
// `pitch` floats a row. Weights come from the L2 cache, one column per thread, so that a warp reads
// them side by side.
template <int kMine>
__device__ void linear(const float* __restrict__ weight, const float* __restrict__ bias, bool relu,
                       const float* from, float* to, int pitch, int in, int out, int column,
                       int row) {
  float sum[kMine];
#pragma unroll
  for (int r = 0; r < kMine; ++r) sum[r] = bias[column];
  const float* w = weight + column;
  from += row * pitch;
  int k = 0;
  for (; k + kAhead <= in; k += kAhead) {
    float ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead[i] = __ldg(w + static_cast<int64_t>(k + i) * out);
#pragma unroll
    for (int i = 0; i < kAhead; i += kStep) {
#pragma unroll
      for (int r = 0; r < kMine; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(from + r * pitch + k + i);
        sum[r] = fmaf(x.x, ahead[i], sum[r]);
        sum[r] = fmaf(x.y, ahead[i + 1], sum[r]);
        sum[r] = fmaf(x.z, ahead[i + 2], sum[r]);
        sum[r] = fmaf(x.w, ahead[i + 3], sum[r]);
      }
    }
  }
  for (; k < in; ++k) {
    const float one = __ldg(w + static_cast<int64_t>(k) * out);
#pragma unroll
    for (int r = 0; r < kMine; ++r) sum[r] = fmaf(from[r * pitch + k], one, sum[r]);
  }
#pragma unroll
  for (int r = 0; r < kMine; ++r) {
    to[(row + r) * pitch + column] = relu ? fmaxf(sum[r], 0.0f) : sum[r];
  }
}

__device__ float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// A warp for each row.
__device__ void normalise(float* rows, int pitch, int width, const float* __restrict__ gain,
                          const float* __restrict__ shift, float epsilon) {
  const int lane = threadIdx.x % 32;
  const float share = 1.0f / static_cast<float>(width);
  for (int row = threadIdx.x / 32; row < kRows; row += blockDim.x / 32) {
    float* h = rows + row * pitch;
    float sum = 0.0f;
    for (int c = lane; c < width; c += 32) sum += h[c];
    const float mean = warp_sum(sum) * share;
    float squares = 0.0f;
    for (int c = lane; c < width; c += 32) squares = fmaf(h[c] - mean, h[c] - mean, squares);
    const float scale = rsqrtf(warp_sum(squares) * share + epsilon);
    for (int c = lane; c < width; c += 32) {
      h[c] = fmaf((h[c] - mean) * scale, __ldg(gain + c), __ldg(shift + c));
    }
  }
}

__global__ void chains_kernel(const __grid_constant__ DenseChains args, int pitch) {
  extern __shared__ float4 memory[];  // float4: rows begin at multiples of 16 bytes
  float* from = reinterpret_cast<float*>(memory);
  float* to = from + kRows * pitch;
  const DenseChain& chain = args.chain[blockIdx.y];
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kRows;
  const int real = static_cast<int>(min(static_cast<int64_t>(kRows), args.rows - start));
  int width = chain.width;
  for (int i = threadIdx.x; i < kRows * width; i += blockDim.x) {
    const int row = i / width, column = i % width;
    // Rows behind the end repeat the last one; they are not written.
    const int64_t source = start + min(row, real - 1);
    from[row * pitch + column] = args.input[source * args.input_width + chain.first + column];
  }
  for (int l = 0; l < chain.layers; ++l) {
    const DenseLayer& layer = chain.layer[l];
    const int out = layer.width;
    const float* weight = args.parameters + layer.parameters;
    const float* bias = weight + static_cast<int64_t>(width) * out;
    __syncthreads();
    // Threads that a narrow layer leaves over take some of the rows.
    const int room = static_cast<int>(blockDim.x) / out;
    const int share = room >= 8 ? 8 : room >= 4 ? 4 : room >= 2 ? 2 : 1;
    for (int unit = threadIdx.x; unit < out * share; unit += blockDim.x) {
      const int column = unit % out, mine = kRows / share, row = unit / out * mine;
      switch (share) {
        case 8: linear<1>(weight, bias, layer.relu, from, to, pitch, width, out, column, row); break;
        case 4: linear<2>(weight, bias, layer.relu, from, to, pitch, width, out, column, row); break;
        case 2: linear<4>(weight, bias, layer.relu, from, to, pitch, width, out, column, row); break;
        default: linear<8>(weight, bias, layer.relu, from, to, pitch, width, out, column, row);
      }
    }
    if (layer.norm) {
      __syncthreads();
      normalise(to, pitch, out, bias + out, bias + 2 * out, args.epsilon);
    }
    width = out;
    float* const swap = from;
    from = to;
    to = swap;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < real * width; i += blockDim.x) {
    const int row = i / width, column = i % width;
    args.output[(start + row) * args.output_width + chain.target + column] =
        from[row * pitch + column];
  }
}

}  // namespace

std::string dense_chains_cuda(const DenseChains& args) {
  int widest = 0;
  for (int c = 0; c < args.count; ++c) {
    const DenseChain& chain = args.chain[c];
    if (chain.first < 0 || chain.first + chain.width > args.input_width) {
      return "dense chains: a chain reads columns that the input does not have";
    }
    widest = std::max(widest, chain.width);
    for (int l = 0; l < chain.layers; ++l) widest = std::max(widest, chain.layer[l].width);
  }
  if (args.count < 1 || widest > kMaxChainWidth) return "dense chains: not parsed, or too wide";
  if (args.rows == 0) return {};
  const int64_t blocks = (args.rows + kRows - 1) / kRows;
  if (blocks > INT32_MAX) return "dense chains: too many rows";
  const int pitch = (widest + kStep - 1) / kStep * kStep;
  const int threads = std::min(256, (widest + 31) / 32 * 32);
  const std::size_t shared = 2 * kRows * static_cast<std::size_t>(pitch) * sizeof(float);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.count));
  chains_kernel<<<grid, threads, shared, static_cast<cudaStream_t>(args.stream)>>>(args, pitch);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return std::string("dense chains: ") + cudaGetErrorString(error);
  return {};
}

}  // namespace s4d
