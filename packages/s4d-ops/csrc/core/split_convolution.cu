#include "core/split_convolution.h"

#include <cuda_runtime.h>

#include "core/split_device.cuh"

namespace s4d {
namespace {

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
    split::turn(word, quad);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 other = split::join(word[2 * j], word[2 * j + 1]);
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
      word[2 * j] = split::pack(x, y);
      const float2 near = split::unpack(word[2 * j]);
      word[2 * j + 1] = split::pack((x - near.x) * 2048.0f, (y - near.y) * 2048.0f);
    }
    split::turn(word, quad);
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
  const uint32_t ring = split::shared_address(shared);
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
        split::copy_16(at, from, inside);
        split::copy_16(at ^ 16, from + 16, inside);
      }
#pragma unroll
      for (int i = 0; i < kWeights; ++i) {
        const uint32_t at = to + (kRows + i * (kThreads / 4)) * kRowBytes;
        const bool used = first_channel + line + i * (kThreads / 4) < t.channels;
        const unsigned char* from = used ? weight + i * (kThreads / 4) * weight_row : t.weight;
        split::copy_16(at, from, used);
        split::copy_16(at ^ 16, from + 16, used);
      }
      weight += kRowBytes;
      depth += 4;
      settle();
    }
    split::commit_copies();
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
    split::wait_copies<kStages - 2>();
    if constexpr (kPlain) {  // what this thread has copied, in its place
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const int at = stage * kStageBytes + (line + i * (kThreads / 4)) * kRowBytes + piece;
        uint4* first = reinterpret_cast<uint4*>(shared + at);
        uint4* second = reinterpret_cast<uint4*>(shared + (at ^ 16));
        const float4 a = *reinterpret_cast<const float4*>(first);
        const float4 b = *reinterpret_cast<const float4*>(second);
        const float value[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
        split::group_parts(value, first, second);
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
        split::load_tiles(both, at);
        high[j][0] = both[0], high[j][1] = both[1];
        high[j + 1][0] = both[2], high[j + 1][1] = both[3];
        split::load_tiles(both, at ^ 16);
        low[j][0] = both[0], low[j][1] = both[1];
        low[j + 1][0] = both[2], low[j + 1][1] = both[3];
      }
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        small[j][0] = split::shrink(high[j][0]);
        small[j][1] = split::shrink(high[j][1]);
      }
#pragma unroll
      for (int i = 0; i < kHigh; ++i) {
        uint32_t near[4], rest[4];
        const uint32_t at = base + i * (16 * kRowBytes) + (from_left ^ (k * 64));
        split::load_tiles(near, at);
        split::load_tiles(rest, at ^ 16);
        float part[kWide][4];
#pragma unroll
        for (int j = 0; j < kWide; ++j) part[j][0] = part[j][1] = part[j][2] = part[j][3] = 0.0f;
        // Small products first. Neighbours in time belong to different sums.
#pragma unroll
        for (int j = 0; j < kWide; ++j) split::multiply(part[j], rest, small[j][0], small[j][1]);
#pragma unroll
        for (int j = 0; j < kWide; ++j) split::multiply(part[j], near, low[j][0], low[j][1]);
#pragma unroll
        for (int j = 0; j < kWide; ++j) split::multiply(part[j], near, high[j][0], high[j][1]);
#pragma unroll
        for (int j = 0; j < kWide; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[i][j][c] += part[j][c];
        }
      }
    }
    if (++stage == kStages) stage = 0;
  }
  split::wait_copies<0>();

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

std::string named(cudaError_t error) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // it is reported here
  return std::string("split convolution: ") + cudaGetErrorString(error);
}

int tiles(const Task& t, int rows, int columns) {
  return (t.pixels + rows - 1) / rows * ((t.channels + columns - 1) / columns);
}

constexpr int ring_bytes(int rows, int columns, int stages) {
  return stages * (rows + columns) * kRowBytes;
}

template <bool kPlain, int kRows, int kColumns, int kDown, int kAcross, int kStages, int kBlocks>
cudaError_t launch(Task t, cudaStream_t stream) {
  const auto kernel = split_kernel<kPlain, kRows, kColumns, kDown, kAcross, kStages, kBlocks>;
  constexpr int kBytes = ring_bytes(kRows, kColumns, kStages);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  t.across = (t.channels + kColumns - 1) / kColumns;
  kernel<<<tiles(t, kRows, kColumns), kDown * kAcross * 32, kBytes, stream>>>(t);
  return cudaGetLastError();
}

struct DeviceSize {
  int processors = 0;
  int shared_bytes = 0;  // that one block may have
};

// Relative time of a shape: passes over the device, times what a tile takes.
SplitTile best(const Task& t, const DeviceSize& device, bool plain) {
  const auto passes = [&](int rows, int columns, int beside) {
    const int together = device.processors * beside;
    return (tiles(t, rows, columns) + together - 1) / together;
  };
  // The large tile's ring fits 8.0, 8.7, 9.0 and 10.0, not 8.6, 8.9 and 12.0.
  const bool roomy = device.shared_bytes >= ring_bytes(128, 128, 4);
  const int large = roomy ? passes(128, 128, 1) * 16 : INT32_MAX, tall = passes(128, 64, 3) * 23;
  const int small = passes(64, 64, 3) * 15;
  const int flat = passes(32, 64, 3) * 10;
  if (flat < small && (plain || (flat < large && flat < tall))) return SplitTile::flat;
  if (plain || (small < large && small < tall)) return SplitTile::small;
  return large < tall ? SplitTile::large : SplitTile::tall;
}

// Of the current device; no processors where it is too old.
cudaError_t look_at_device(DeviceSize* size) {
  int device = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto look = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  look(&major, cudaDevAttrComputeCapabilityMajor);
  look(&size->processors, cudaDevAttrMultiProcessorCount);
  look(&size->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (major < 8) size->processors = 0;
  return error;
}

}  // namespace

std::string split_convolution_cuda(const SplitConvolution& args, SplitTile tile) {
  const auto& in = args.input_size;
  const auto& out = args.output_size;
  if (in[3] % kSplitGroup || out[3] % kSplitGroup) {
    return "split convolution: channels must be a multiple of 8";
  }
  constexpr int64_t limit = 1 << 30;
  const int64_t depth = int64_t{args.kernel[0]} * args.kernel[1] * in[3];
  if (in[0] * in[1] * in[2] * in[3] / 8 >= limit || out[0] * out[1] * out[2] >= limit ||
      out[3] >= limit || depth >= limit) {
    return "split convolution: a tensor is too large";
  }
  if (out[0] * out[1] * out[2] * out[3] == 0) return {};
  DeviceSize device;
  const cudaError_t seen = look_at_device(&device);
  if (seen != cudaSuccess) return named(seen);
  if (device.processors == 0) return "split convolution: needs compute capability 8.0";
  Task t{};
  t.input = static_cast<const unsigned char*>(args.input);
  t.weight = static_cast<const unsigned char*>(args.weight);
  t.finish = args.finish;
  t.residual = static_cast<const unsigned char*>(args.residual);
  t.output = static_cast<unsigned char*>(args.output);
  t.pixels = static_cast<int>(out[0] * out[1] * out[2]);
  t.height = static_cast<int>(in[1]);
  t.width = static_cast<int>(in[2]);
  t.groups = static_cast<int>(in[3] / kSplitGroup);
  t.out_height = static_cast<int>(out[1]);
  t.out_width = static_cast<int>(out[2]);
  t.channels = static_cast<int>(out[3]);
  t.kernel_height = args.kernel[0];
  t.kernel_width = args.kernel[1];
  t.stride_y = args.stride[0];
  t.stride_x = args.stride[1];
  t.pad_y = args.pad[0];
  t.pad_x = args.pad[1];
  t.steps = static_cast<int>((depth + kSplitDepth - 1) / kSplitDepth);
  t.residual_kind = args.residual_kind;
  t.relu = args.relu;
  t.split_output = args.split_output;
  const cudaStream_t stream = static_cast<cudaStream_t>(args.stream);
  if (tile == SplitTile::automatic) tile = best(t, device, args.plain_input);
  if (args.plain_input) {
    return named(tile == SplitTile::flat ? launch<true, 32, 64, 2, 2, 6, 3>(t, stream)
                                         : launch<true, 64, 64, 2, 2, 4, 3>(t, stream));
  }
  switch (tile) {
    case SplitTile::large: return named(launch<false, 128, 128, 2, 4, 4, 1>(t, stream));
    case SplitTile::tall: return named(launch<false, 128, 64, 2, 2, 3, 3>(t, stream));
    case SplitTile::flat: return named(launch<false, 32, 64, 2, 2, 6, 3>(t, stream));
    default: return named(launch<false, 64, 64, 2, 2, 4, 3>(t, stream));
  }
}

}  // namespace s4d
