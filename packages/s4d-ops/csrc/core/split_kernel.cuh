// The kernel of split products: what it is told, how it ends, how it runs. See split_convolution.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/split_convolution.h"
#include "core/split_device.cuh"

namespace s4d {
namespace split {

constexpr int kRowBytes = kSplitDepth * 4;  // of a tile, in shared memory: 8 pieces of 16 bytes

// What the kernel is told: sizes that fit 32 bits, and strides in groups of 8 channels (32 bytes).
struct Task {
  const unsigned char* input;
  const unsigned char* weight;
  const float* finish;
  const unsigned char* residual;
  unsigned char* output;
  int pixels;             // of the output, all images
  int height, width;      // of an input image
  int groups;             // of input channels
  int out_height, out_width, channels;
  int kernel_height, kernel_width;
  int stride_y, stride_x, pad_y, pad_x;
  int steps;              // of 32 products
  int across;             // tiles beside each other
  SplitResidual residual_kind;
  bool relu, split_output;
};

#ifdef S4D_SPLIT_PRODUCTS
// Scale, bias, residual, ReLU and the store of a pixel's 16 channels from `first` on, of which each
// of four lanes (`quad`) has two of the first 8 and two of the others. All lanes of the warp call
// it; `there` says whether the pixel is real.
__device__ inline void finish(const Task& t, int64_t pixel, bool there, int first, int quad,
                              const float* low_half, const float* high_half) {
  const float* sums[2] = {low_half, high_half};
  float value[4];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int channel = min(first + j * 8 + quad * 2, t.channels - 2);
    const float2 bias = __ldg(reinterpret_cast<const float2*>(t.finish + channel));
    const float2 scale = __ldg(reinterpret_cast<const float2*>(t.finish + t.channels + channel));
    value[2 * j] = sums[j][0] * scale.x + bias.x;
    value[2 * j + 1] = sums[j][1] * scale.y + bias.y;
  }
  const int64_t row = pixel * t.channels * 4;  // bytes before this pixel
  // Of split channels a lane moves 16 bytes: high or low parts of one of the two groups of 8.
  const int64_t mine = row + first * 4 + quad * 16;
  const bool moves = there && first + quad / 2 * 8 < t.channels;
  if (t.residual_kind == SplitResidual::single) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int channel = first + j * 8 + quad * 2;
      if (!there || channel >= t.channels) continue;
      const float2 other = *reinterpret_cast<const float2*>(t.residual + row + channel * 4);
      value[2 * j] += other.x;
      value[2 * j + 1] += other.y;
    }
  } else if (t.residual_kind == SplitResidual::split) {
    uint4 loaded = make_uint4(0, 0, 0, 0);
    if (moves) loaded = *reinterpret_cast<const uint4*>(t.residual + mine);
    uint32_t word[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    turn(word, quad);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 other = join(word[2 * j], word[2 * j + 1]);
      value[2 * j] += other.x;
      value[2 * j + 1] += other.y;
    }
  }
  if (t.relu) {  // NaN stays
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = value[i] < 0.0f ? 0.0f : value[i];
  }
  if (t.split_output) {
    uint32_t word[4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float x = value[2 * j], y = value[2 * j + 1];
      word[2 * j] = pack(x, y);
      const float2 near = unpack(word[2 * j]);
      word[2 * j + 1] = pack((x - near.x) * 2048.0f, (y - near.y) * 2048.0f);
    }
    turn(word, quad);
    if (moves) {
      *reinterpret_cast<uint4*>(t.output + mine) = make_uint4(word[0], word[1], word[2], word[3]);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int channel = first + j * 8 + quad * 2;
    if (!there || channel >= t.channels) continue;
    *reinterpret_cast<float2*>(t.output + row + channel * 4) =
        make_float2(value[2 * j], value[2 * j + 1]);
  }
}
#endif

// A block makes kRows pixels by kColumns channels, a warp kRows / kDown by kColumns / kAcross.
template <bool kPlain, int kRows, int kColumns, int kDown, int kAcross, int kStages, int kBlocks>
__global__ void __launch_bounds__(kDown * kAcross * 32, kBlocks)
    split_kernel(const __grid_constant__ Task t) {
#ifdef S4D_SPLIT_PRODUCTS
  constexpr int kThreads = kDown * kAcross * 32;
  constexpr int kMine = kRows * 4 / kThreads;        // rows of the input a thread copies
  constexpr int kWeights = kColumns * 4 / kThreads;  // of the weights
  constexpr int kHigh = kRows / kDown / 16, kWide = kColumns / kAcross / 8;  // tiles of a warp
  constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;
  static_assert(kMine > 0 && kWeights > 0 && kHigh > 0 && kWide % 2 == 0, "tile too small");
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t ring = shared_address(shared);
  const int first_pixel = blockIdx.x / t.across * kRows;
  const int first_channel = blockIdx.x % t.across * kColumns;

  // Copies: a thread takes one of the four groups of 8 of a step, of rows kThreads / 4 apart.
  const int group = threadIdx.x % 4, line = threadIdx.x / 4;
  int start[kMine], top[kMine], left[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int pixel = first_pixel + line + i * (kThreads / 4);
    const int image = pixel / (t.out_width * t.out_height);
    top[i] = pixel / t.out_width % t.out_height * t.stride_y - t.pad_y;
    left[i] = pixel % t.out_width * t.stride_x - t.pad_x;
    start[i] = ((image * t.height + top[i]) * t.width + left[i]) * t.groups;
    if (pixel >= t.pixels) top[i] = -(1 << 30);  // outside for every tap
  }
  const int64_t weight_row = int64_t{t.steps} * kRowBytes;
  const unsigned char* weight = t.weight + (first_channel + line) * weight_row + group * 32;
  int tap_y = 0, tap_x = 0, depth = group;  // where the next copy reads
  const auto settle = [&] {
    while (depth >= t.groups) {
      depth -= t.groups;
      if (++tap_x == t.kernel_width) {
        tap_x = 0;
        ++tap_y;
      }
    }
  };
  settle();
  // Pieces of a row are exchanged by row, so that neither side meets bank conflicts.
  const int piece = (2 * group ^ (line & 7)) * 16;
  const unsigned height = static_cast<unsigned>(t.height), width = static_cast<unsigned>(t.width);
  int copied = 0, copy_stage = 0;
  const auto copy = [&] {
    if (copied < t.steps) {
      const uint32_t to = ring + copy_stage * kStageBytes + line * kRowBytes + piece;
      const int shift = (tap_y * t.width + tap_x) * t.groups + depth;
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const bool inside = tap_y < t.kernel_height &&
                            static_cast<unsigned>(top[i] + tap_y) < height &&
                            static_cast<unsigned>(left[i] + tap_x) < width;
        const unsigned char* from = t.input + (inside ? int64_t{start[i] + shift} * 32 : 0);
        const uint32_t at = to + i * (kThreads / 4 * kRowBytes);
        copy_16(at, from, inside);
        copy_16(at ^ 16, from + 16, inside);
      }
#pragma unroll
      for (int i = 0; i < kWeights; ++i) {
        const uint32_t at = to + (kRows + i * (kThreads / 4)) * kRowBytes;
        const bool used = first_channel + line + i * (kThreads / 4) < t.channels;
        const unsigned char* from = used ? weight + i * (kThreads / 4) * weight_row : t.weight;
        copy_16(at, from, used);
        copy_16(at ^ 16, from + 16, used);
      }
      weight += kRowBytes;
      depth += 4;
      settle();
    }
    commit_copies();
    ++copied;
    if (++copy_stage == kStages) copy_stage = 0;
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int down = warp % kDown * (kRows / kDown), across = warp / kDown * (kColumns / kAcross);
  // Of the left operand lanes name rows 0..15 at the first 8 of depth, then at the next 8; of the
  // right one 8 columns at both, then the next 8 columns.
  const uint32_t from_left = (down + lane % 16) * kRowBytes + ((lane / 16 * 2 ^ (lane & 7)) * 16);
  const uint32_t from_right = (kRows + across + lane / 16 * 8 + lane % 8) * kRowBytes +
                              ((lane / 8 % 2 * 2 ^ (lane & 7)) * 16);
  float sum[kHigh][kWide][4];
#pragma unroll
  for (int i = 0; i < kHigh; ++i) {
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[i][j][k] = 0.0f;
    }
  }
  int stage = 0;
  for (int step = 0; step < t.steps; ++step) {
    wait_copies<kStages - 2>();
    if constexpr (kPlain) {  // what this thread has copied, in its place
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const int at = stage * kStageBytes + (line + i * (kThreads / 4)) * kRowBytes + piece;
        uint4* first = reinterpret_cast<uint4*>(shared + at);
        uint4* second = reinterpret_cast<uint4*>(shared + (at ^ 16));
        const float4 a = *reinterpret_cast<const float4*>(first);
        const float4 b = *reinterpret_cast<const float4*>(second);
        const float value[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        group_parts(value, first, second);
      }
    }
    __syncthreads();  // this stage has arrived for all, and all are done with the one before
    copy();
    const uint32_t base = ring + stage * kStageBytes;
#pragma unroll
    for (int k = 0; k < 2; ++k) {  // 16 products at a time
      uint32_t high[kWide][2], low[kWide][2], small[kWide][2];
#pragma unroll
      for (int j = 0; j < kWide; j += 2) {
        uint32_t both[4];
        const uint32_t at = base + j * (8 * kRowBytes) + (from_right ^ (k * 64));
        load_tiles(both, at);
        high[j][0] = both[0], high[j][1] = both[1];
        high[j + 1][0] = both[2], high[j + 1][1] = both[3];
        load_tiles(both, at ^ 16);
        low[j][0] = both[0], low[j][1] = both[1];
        low[j + 1][0] = both[2], low[j + 1][1] = both[3];
      }
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        small[j][0] = shrink(high[j][0]);
        small[j][1] = shrink(high[j][1]);
      }
#pragma unroll
      for (int i = 0; i < kHigh; ++i) {
        uint32_t near[4], rest[4];
        const uint32_t at = base + i * (16 * kRowBytes) + (from_left ^ (k * 64));
        load_tiles(near, at);
        load_tiles(rest, at ^ 16);
        float part[kWide][4];
#pragma unroll
        for (int j = 0; j < kWide; ++j) part[j][0] = part[j][1] = part[j][2] = part[j][3] = 0.0f;
        // Small products first. Neighbours in time belong to different sums.
#pragma unroll
        for (int j = 0; j < kWide; ++j) multiply(part[j], rest, small[j][0], small[j][1]);
#pragma unroll
        for (int j = 0; j < kWide; ++j) multiply(part[j], near, low[j][0], low[j][1]);
#pragma unroll
        for (int j = 0; j < kWide; ++j) multiply(part[j], near, high[j][0], high[j][1]);
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[i][j][c] += part[j][c];
        }
      }
    }
    if (++stage == kStages) stage = 0;
  }
  wait_copies<0>();

#pragma unroll
  for (int i = 0; i < kHigh; ++i) {
    const int pixel = first_pixel + down + i * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < kWide; j += 2) {
      const int channel = first_channel + across + j * 8;
      if (channel >= t.channels) continue;
      const float *one = sum[i][j], *two = sum[i][j + 1];
      finish(t, pixel, pixel < t.pixels, channel, lane % 4, one, two);
      finish(t, pixel + 8, pixel + 8 < t.pixels, channel, lane % 4, one + 2, two + 2);
    }
  }
#endif
}

}  // namespace split
}  // namespace s4d
