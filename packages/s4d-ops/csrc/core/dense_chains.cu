#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "dense_chains.h"

namespace s4d {
namespace {

constexpr int kRows = 8;      // of a block; 900 rows are 113 blocks, one for most multiprocessors
constexpr int kStep = 4;      // floats read from shared memory at once
constexpr int kStage = 4096;  // floats of weights in a stage: 16 rows of 256, or a whole narrow layer
constexpr int kStages = 3;

// The weights of all layers, on their way through shared memory: they do not depend on the rows, so
// the next tiles travel while a layer is computed and normalised, across the end of a layer too.
struct Weights {
  const float* parameters;
  const DenseChain* chain;
  float* stages;
  int layer = 0, k = 0, width;  // of the next tile to fetch; width: the layer's input channels
  int fetched = 0, taken = 0;

  __device__ static int tile_rows(int out) { return max(kStage / out / kStep * kStep, kStep); }

  // Starts copying the next tile, if there is one; always one group of copies.
  __device__ void fetch() {
    if (layer < chain->layers) {
      const DenseLayer& l = chain->layer[layer];
      const int rows = min(tile_rows(l.width), width - k);
      const float* source = parameters + l.parameters + static_cast<int64_t>(k) * l.width;
      float* target = stages + fetched % kStages * kStage;
      // Layers begin at multiples of 16 bytes, so the last piece may hold some of the bias.
      for (int i = threadIdx.x * kStep; i < rows * l.width; i += blockDim.x * kStep) {
        const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(target + i));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(source + i)
                     : "memory");
      }
      k += rows;
      if (k == width) {
        width = l.width;
        k = 0;
        ++layer;
      }
    }
    ++fetched;
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

  // Waits for the next tile and starts another one in the place of the one before.
  __device__ const float* take() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();  // the tile is there for all, and nobody reads the one before any more
    const float* tile = stages + taken++ % kStages * kStage;
    fetch();
    return tile;
  }
};

// One layer. A thread has one column and kMine rows; `from` and `to` are shared memory, `pitch`
// floats a row. All threads come here, also those without a column.
template <int kMine>
__device__ void linear(Weights& weights, const float* __restrict__ bias, bool relu,
                       const float* from, float* to, int pitch, int in, int out) {
  const int column = threadIdx.x % out, row = threadIdx.x / out * kMine;
  const bool works = row < kRows;
  float sum[kMine];
#pragma unroll
  for (int r = 0; r < kMine; ++r) sum[r] = bias[column];
  from += row * pitch;
  const int rows = Weights::tile_rows(out);
  for (int k = 0; k < in; k += rows) {
    const float* w = weights.take() + column;
    if (!works) continue;
    const int count = min(rows, in - k);
    int i = 0;
#pragma unroll 4
    for (; i + kStep <= count; i += kStep) {
      float one[kStep];
#pragma unroll
      for (int j = 0; j < kStep; ++j) one[j] = w[(i + j) * out];
#pragma unroll
      for (int r = 0; r < kMine; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(from + r * pitch + k + i);
        sum[r] = fmaf(x.x, one[0], sum[r]);
        sum[r] = fmaf(x.y, one[1], sum[r]);
        sum[r] = fmaf(x.z, one[2], sum[r]);
        sum[r] = fmaf(x.w, one[3], sum[r]);
      }
    }
    for (; i < count; ++i) {
#pragma unroll
      for (int r = 0; r < kMine; ++r) {
        sum[r] = fmaf(from[r * pitch + k + i], w[i * out], sum[r]);
      }
    }
  }
  if (!works) return;
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
  extern __shared__ float4 memory[];  // float4: rows and stages begin at multiples of 16 bytes
  float* from = reinterpret_cast<float*>(memory) + kStages * kStage;
  float* to = from + kRows * pitch;
  const DenseChain& chain = args.chain[blockIdx.y];
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kRows;
  const int real = static_cast<int>(min(static_cast<int64_t>(kRows), args.rows - start));
  int width = chain.width;
  Weights weights{args.parameters, &chain, reinterpret_cast<float*>(memory)};
  weights.width = width;
  for (int ahead = 1; ahead < kStages; ++ahead) weights.fetch();
  for (int i = threadIdx.x; i < kRows * width; i += blockDim.x) {
    const int row = i / width, column = i % width;
    // Rows behind the end repeat the last one; they are not written.
    const int64_t source = start + min(row, real - 1);
    from[row * pitch + column] = args.input[source * args.input_width + chain.first + column];
  }
  for (int l = 0; l < chain.layers; ++l) {
    const DenseLayer& layer = chain.layer[l];
    const int out = layer.width;
    const float* bias = args.parameters + layer.parameters + static_cast<int64_t>(width) * out;
    // Threads that a narrow layer leaves over take some of the rows. The first tile's barrier is
    // also the one between the layers.
    const int room = static_cast<int>(blockDim.x) / out;
    if (room >= 8) {
      linear<1>(weights, bias, layer.relu, from, to, pitch, width, out);
    } else if (room >= 4) {
      linear<2>(weights, bias, layer.relu, from, to, pitch, width, out);
    } else if (room >= 2) {
      linear<4>(weights, bias, layer.relu, from, to, pitch, width, out);
    } else {
      linear<8>(weights, bias, layer.relu, from, to, pitch, width, out);
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
  if (reinterpret_cast<std::uintptr_t>(args.parameters) % 16 != 0) {
    return "dense chains: the parameters do not begin at a multiple of 16 bytes";
  }
  const int pitch = (widest + kStep - 1) / kStep * kStep;
  const int threads = (widest + 31) / 32 * 32;  // every layer has a thread for each column
  const auto bytes = [](int columns) {
    return static_cast<int>((kStages * kStage + 2 * kRows * columns) * sizeof(float));
  };
  // Always the same value: threads with narrower chains must not lower it.
  const cudaError_t room = cudaFuncSetAttribute(
      chains_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes(kMaxChainWidth));
  if (room != cudaSuccess) {
    cudaGetLastError();  // it is reported here
    return std::string("dense chains: ") + cudaGetErrorString(room);
  }
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.count));
  chains_kernel<<<grid, threads, bytes(pitch), static_cast<cudaStream_t>(args.stream)>>>(args, pitch);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return std::string("dense chains: ") + cudaGetErrorString(error);
  return {};
}

}  // namespace s4d
