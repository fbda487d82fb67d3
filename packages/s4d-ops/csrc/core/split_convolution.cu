#include "core/split_convolution.h"

#include <cuda_runtime.h>

#include "core/split_kernel.cuh"

namespace s4d {
namespace {

using split::Task;

std::string named(cudaError_t error) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // it is reported here
  return std::string("split convolution: ") + cudaGetErrorString(error);
}

int tiles(const Task& t, int rows, int columns) {
  return (t.pixels + rows - 1) / rows * ((t.channels + columns - 1) / columns);
}

constexpr int ring_bytes(int rows, int columns, int stages) {
  return stages * (rows + columns) * split::kRowBytes;
}

template <bool kPlain, int kRows, int kColumns, int kDown, int kAcross, int kStages, int kBlocks>
cudaError_t launch(Task t, cudaStream_t stream) {
  const auto kernel =
      split::split_kernel<kPlain, kRows, kColumns, kDown, kAcross, kStages, kBlocks>;
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
