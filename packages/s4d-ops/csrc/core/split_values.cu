#include "core/split_convolution.h"

#include <cuda_runtime.h>

#include <cmath>

#include "core/split_device.cuh"

namespace s4d {
namespace {

__global__ void split_values_kernel(const float* input, int64_t groups, int per_row, int channels,
                                    uint4* output) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= groups) return;
  const int first = static_cast<int>(at % per_row) * kSplitGroup;
  const float* from = input + at / per_row * channels + first;
  float value[8];
  if (channels % 4 == 0 && first + 8 <= channels) {
    const float4 a = reinterpret_cast<const float4*>(from)[0];
    const float4 b = reinterpret_cast<const float4*>(from)[1];
    value[0] = a.x, value[1] = a.y, value[2] = a.z, value[3] = a.w;
    value[4] = b.x, value[5] = b.y, value[6] = b.z, value[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = first + i < channels ? from[i] : 0.0f;
  }
  split::group_parts(value, output + 2 * at, output + 2 * at + 1);
}

struct PoolTask {
  const uint4* input;
  void* output;
  int64_t total;  // groups of 8 output channels
  int groups, height, width, out_height, out_width;
  int kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x;
  bool split_output;
};

// One thread: 8 channels of an output pixel.
__global__ void split_pool_kernel(const __grid_constant__ PoolTask t) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= t.total) return;
  const int64_t pixel = at / t.groups, line = pixel / t.out_width, image = line / t.out_height;
  const int left = static_cast<int>(pixel % t.out_width) * t.stride_x - t.pad_x;
  const int top = static_cast<int>(line % t.out_height) * t.stride_y - t.pad_y;
  float most[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) most[i] = -INFINITY;
  for (int y = max(top, 0); y < min(top + t.kernel_height, t.height); ++y) {
    for (int x = max(left, 0); x < min(left + t.kernel_width, t.width); ++x) {
      const int64_t from = ((image * t.height + y) * t.width + x) * t.groups + at % t.groups;
      const uint4 high = t.input[2 * from], low = t.input[2 * from + 1];
      const float2 pairs[4] = {split::join(high.x, low.x), split::join(high.y, low.y),
                               split::join(high.z, low.z), split::join(high.w, low.w)};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float value = i % 2 ? pairs[i / 2].y : pairs[i / 2].x;
        if (value > most[i] || value != value) most[i] = value;  // NaN stays
      }
    }
  }
  if (t.split_output) {
    uint4* output = static_cast<uint4*>(t.output) + 2 * at;
    split::group_parts(most, output, output + 1);
  } else {
    float4* output = static_cast<float4*>(t.output) + 2 * at;
    output[0] = make_float4(most[0], most[1], most[2], most[3]);
    output[1] = make_float4(most[4], most[5], most[6], most[7]);
  }
}

std::string named(cudaError_t error) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // it is reported here
  return std::string("split tensors: ") + cudaGetErrorString(error);
}

}  // namespace

std::string split_values_cuda(const float* input, int64_t rows, int channels, void* output,
                              void* stream) {
  const int per_row = (channels + kSplitGroup - 1) / kSplitGroup;
  const int64_t groups = rows * per_row, blocks = (groups + 255) / 256;
  if (groups == 0) return {};
  if (channels < 1 || blocks > INT32_MAX) return "split values: a tensor is too large";
  split_values_kernel<<<static_cast<unsigned>(blocks), 256, 0, static_cast<cudaStream_t>(stream)>>>(
      input, groups, per_row, channels, static_cast<uint4*>(output));
  return named(cudaGetLastError());
}

std::string split_pool_cuda(const SplitPool& args) {
  const auto& out = args.output_size;
  if (args.input_size[3] % kSplitGroup || out[3] != args.input_size[3]) {
    return "split pooling: channels must be a multiple of 8";
  }
  const int64_t total = out[0] * out[1] * out[2] * (out[3] / kSplitGroup);
  const int64_t blocks = (total + 255) / 256;
  if (total == 0) return {};
  if (blocks > INT32_MAX) return "split pooling: a tensor is too large";
  PoolTask t{};
  t.input = static_cast<const uint4*>(args.input);
  t.output = args.output;
  t.total = total;
  t.groups = static_cast<int>(out[3] / kSplitGroup);
  t.height = static_cast<int>(args.input_size[1]);
  t.width = static_cast<int>(args.input_size[2]);
  t.out_height = static_cast<int>(out[1]);
  t.out_width = static_cast<int>(out[2]);
  t.kernel_height = args.kernel[0];
  t.kernel_width = args.kernel[1];
  t.stride_y = args.stride[0];
  t.stride_x = args.stride[1];
  t.pad_y = args.pad[0];
  t.pad_x = args.pad[1];
  t.split_output = args.split_output;
  split_pool_kernel<<<static_cast<unsigned>(blocks), 256, 0,
                      static_cast<cudaStream_t>(args.stream)>>>(t);
  return named(cudaGetLastError());
}

}  // namespace s4d
