// Resize and crop on the GPU. One block makes a tile of the output: it forms the filter's weights
// for its columns and rows in double precision, as image_resize.cpp does, resamples the source rows
// that the tile needs along x into shared memory (rounded to bytes, as Pillow does between its two
// passes), then along y. Compiled without contraction of multiply and add, so that the weights are
// those of the CPU kernel.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "image_resize_cuda.h"

namespace s4d {
namespace {

constexpr int kThreads = 256;
constexpr int kTileWidth = 32;
constexpr int kMaxTileHeight = 16;
constexpr int kMaxShared = 96 * 1024;

struct KernelArgs {
  const uint8_t* sources[kMaxImages];
  int64_t source_stride;
  int source_height, source_width, resized_height, resized_width, top, left, height, width;
  ResizeFilter filter;
  ImageLayout layout;
  float mean[3], std[3];
  void* target;
  int tile_height, taps_x, taps_y;
};

__device__ double filter_value(ResizeFilter filter, double x) {
  x = fabs(x);
  if (filter == ResizeFilter::pillow_bilinear) return x < 1.0 ? 1.0 - x : 0.0;
  const double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// First source position, number of positions and fixed-point weights of one output position.
// Antialiased: 22 bits; cv2_linear: two neighbours, 11 bits.
__device__ void axis_weights(ResizeFilter filter, int in_size, int out_size, int position,
                             int taps, int* begin, int* count, int* weights) {
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  if (filter == ResizeFilter::cv2_linear) {
    const double x = (static_cast<double>(position) + 0.5) * scale - 0.5;
    const double low = fmin(fmax(floor(x), 0.0), static_cast<double>(in_size - 1));
    const double fraction = fmin(fmax(x - low, 0.0), 1.0);
    const int weight = static_cast<int>(rint(fraction * 2048.0));
    *begin = static_cast<int>(low);
    *count = *begin + 1 < in_size ? 2 : 1;
    weights[0] = *count == 2 ? 2048 - weight : 2048;
    if (taps > 1) weights[1] = weight;
    return;
  }
  const double stretch = fmax(scale, 1.0);
  const double support = (filter == ResizeFilter::pillow_bicubic ? 2.0 : 1.0) * stretch;
  const double center = (static_cast<double>(position) + 0.5) * scale;
  const int first = max(0, static_cast<int>(center - support + 0.5));
  const int last = min(in_size, static_cast<int>(center + support + 0.5));
  const int length = min(last - first, taps);
  double sum = 0.0;
  for (int k = 0; k < length; ++k) {
    sum += filter_value(filter, (static_cast<double>(first + k) - center + 0.5) * (1.0 / stretch));
  }
  for (int k = 0; k < length; ++k) {
    double weight =
        filter_value(filter, (static_cast<double>(first + k) - center + 0.5) * (1.0 / stretch));
    if (sum != 0.0) weight /= sum;
    const double scaled = weight * (1 << 22);
    weights[k] = static_cast<int>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
  }
  *begin = first;
  *count = length;
}

__device__ int clip(int fixed) { return min(max(fixed >> 22, 0), 255); }

__device__ void store(const KernelArgs& args, int64_t image, int y, int x, int channel,
                      int value) {
  if (args.layout == ImageLayout::bytes) {
    static_cast<uint8_t*>(args.target)[((image * args.height + y) * args.width + x) * 3 + channel] =
        static_cast<uint8_t>(value);
    return;
  }
  const float result = (static_cast<float>(value) - args.mean[channel]) / args.std[channel];
  const int64_t at = ((image * 3 + channel) * args.height + y) * args.width + x;
  if (args.layout == ImageLayout::planar_f32) {
    static_cast<float*>(args.target)[at] = result;
  } else {
    static_cast<__half*>(args.target)[at] = __float2half_rn(result);
  }
}

// Shared memory: begin and count of each column and row, their weights, then the bytes (or, for
// cv2_linear, the unrounded 11-bit sums) of the tile's source rows after the pass along x.
__global__ void __launch_bounds__(kThreads) resize_kernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ int memory[];
  __shared__ int first_row, last_row;
  int* begin_x = memory;
  int* count_x = begin_x + kTileWidth;
  int* begin_y = count_x + kTileWidth;
  int* count_y = begin_y + args.tile_height;
  int* weights_x = count_y + args.tile_height;
  int* weights_y = weights_x + kTileWidth * args.taps_x;
  int* rows = weights_y + args.tile_height * args.taps_y;
  const int thread = threadIdx.x;
  const int64_t image = blockIdx.z;
  const int x0 = blockIdx.x * kTileWidth;
  const int y0 = blockIdx.y * args.tile_height;
  if (thread == 0) {
    first_row = args.source_height;
    last_row = 0;
  }
  __syncthreads();
  for (int i = thread; i < kTileWidth + args.tile_height; i += kThreads) {
    const bool column = i < kTileWidth;
    const int k = column ? i : i - kTileWidth;
    const int position = column ? args.left + x0 + k : args.top + y0 + k;
    const int size = column ? args.resized_width : args.resized_height;
    const bool inside = position >= 0 && position < size && (column ? x0 + k < args.width
                                                                    : y0 + k < args.height);
    int begin = 0, count = 0;
    if (inside) {
      axis_weights(args.filter, column ? args.source_width : args.source_height, size, position,
                   column ? args.taps_x : args.taps_y, &begin, &count,
                   column ? weights_x + k * args.taps_x : weights_y + k * args.taps_y);
    }
    (column ? begin_x : begin_y)[k] = begin;
    (column ? count_x : count_y)[k] = count;
    if (!column && inside) {
      atomicMin(&first_row, begin);
      atomicMax(&last_row, begin + count);
    }
  }
  __syncthreads();

  const bool linear = args.filter == ResizeFilter::cv2_linear;
  const uint8_t* source = args.sources[image];
  const int needed = last_row - first_row;  // negative where the tile lies outside the image
  constexpr int kRowValues = 3 * kTileWidth;
  for (int i = thread; i < needed * kRowValues; i += kThreads) {
    const int row = i / kRowValues;
    const int column = (i - row * kRowValues) / 3;
    const int channel = i - row * kRowValues - 3 * column;
    const uint8_t* from =
        source + (first_row + row) * args.source_stride + 3 * begin_x[column] + channel;
    int sum = linear ? 0 : 1 << 21;
    for (int k = 0; k < count_x[column]; ++k) {
      sum += weights_x[column * args.taps_x + k] * from[3 * k];
    }
    rows[i] = linear ? sum : clip(sum);
  }
  __syncthreads();

  for (int i = thread; i < args.tile_height * kRowValues; i += kThreads) {
    const int y = i / kRowValues;
    int column, channel;
    if (args.layout == ImageLayout::bytes) {
      column = (i - y * kRowValues) / 3;
      channel = i - y * kRowValues - 3 * column;
    } else {  // neighbouring threads write neighbouring columns of one plane
      channel = (i - y * kRowValues) / kTileWidth;
      column = i - y * kRowValues - channel * kTileWidth;
    }
    if (y0 + y >= args.height || x0 + column >= args.width) continue;
    int value = 0;
    if (count_y[y] > 0 && count_x[column] > 0) {
      const int* from = rows + (begin_y[y] - first_row) * kRowValues + 3 * column + channel;
      int sum = 1 << 21;
      for (int k = 0; k < count_y[y]; ++k) {
        sum += weights_y[y * args.taps_y + k] * from[k * kRowValues];
      }
      value = clip(sum);
    }
    store(args, image, y0 + y, x0 + column, channel, value);
  }
}

int64_t taps_of(int64_t in_size, int64_t out_size, ResizeFilter filter) {
  if (filter == ResizeFilter::cv2_linear) return 2;
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double support =
      (filter == ResizeFilter::pillow_bicubic ? 2.0 : 1.0) * (scale < 1.0 ? 1.0 : scale);
  return static_cast<int64_t>(support) * 2 + 3;
}

}  // namespace

std::string resize_crop_cuda(const ResizeCropCuda& args) {
  const ResizeCrop& g = args.geometry;
  std::string problem = check_resize_crop(g);
  if (!problem.empty()) return problem;
  if (args.images < 1 || args.images > kMaxImages || args.sources == nullptr) {
    return "resize_crop: expected 1 to 16 images in a call, got " + std::to_string(args.images);
  }
  KernelArgs k = {};
  for (int64_t i = 0; i < args.images; ++i) k.sources[i] = args.sources[i];
  k.source_stride = g.source_stride;
  k.source_height = static_cast<int>(g.source_height);
  k.source_width = static_cast<int>(g.source_width);
  k.resized_height = static_cast<int>(g.resized_height);
  k.resized_width = static_cast<int>(g.resized_width);
  k.top = static_cast<int>(g.top);
  k.left = static_cast<int>(g.left);
  k.height = static_cast<int>(g.height);
  k.width = static_cast<int>(g.width);
  k.filter = g.filter;
  k.layout = args.layout;
  for (int c = 0; c < 3; ++c) {
    k.mean[c] = args.mean[c];
    k.std[c] = args.std[c];
  }
  k.target = args.target;
  const int64_t taps_x = taps_of(g.source_width, g.resized_width, g.filter);
  const int64_t taps_y = taps_of(g.source_height, g.resized_height, g.filter);
  const double scale_y =
      static_cast<double>(g.source_height) / static_cast<double>(g.resized_height);
  int64_t tile = 0, bytes = 0;
  for (tile = kMaxTileHeight; tile >= 1; tile /= 2) {
    const int64_t rows = static_cast<int64_t>(static_cast<double>(tile) * scale_y) + taps_y + 2;
    bytes = 4 * (2 * (kTileWidth + tile) + kTileWidth * taps_x + tile * taps_y +
                 rows * 3 * kTileWidth);
    if (bytes <= kMaxShared) break;
  }
  if (tile < 1) return "resize_crop: the CUDA kernel does not reduce images this strongly";
  k.tile_height = static_cast<int>(tile);
  k.taps_x = static_cast<int>(taps_x);
  k.taps_y = static_cast<int>(taps_y);
  const int64_t tiles_y = (g.height + tile - 1) / tile;
  if (tiles_y > 65535) return "resize_crop: the CUDA kernel takes crops of up to 65535 tiles high";
  cudaError_t error = cudaFuncSetAttribute(
      resize_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) {
    const dim3 grid(static_cast<uint32_t>((g.width + kTileWidth - 1) / kTileWidth),
                    static_cast<uint32_t>(tiles_y), static_cast<uint32_t>(args.images));
    resize_kernel<<<grid, kThreads, bytes, static_cast<cudaStream_t>(args.stream)>>>(k);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? std::string()
                              : std::string("resize_crop: CUDA reports ") +
                                    cudaGetErrorString(error);
}

}  // namespace s4d
