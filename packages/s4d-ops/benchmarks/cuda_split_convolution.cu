// Times the convolutions of ResNet-50 with its neck at six images of 256 x 704 in split products,
// with every division of the work, and compares samples of the results with double precision.
//
//   nvcc -std=c++17 -O3 -arch=sm_90 -I csrc benchmarks/cuda_split_convolution.cu
//     csrc/core/split_convolution.cu csrc/core/split_values.cu -o split && ./split
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/split_convolution.h"

namespace {

struct Layer {
  int height, width, in, out, size, stride, times;
};

// Of R50: stem, four stages (first block, its shortcut, the others), laterals and outputs.
const std::vector<Layer> kLayers = {
    {256, 704, 8, 64, 7, 2, 1},
    {64, 176, 64, 64, 1, 1, 1},    {64, 176, 64, 64, 3, 1, 3},    {64, 176, 64, 256, 1, 1, 4},
    {64, 176, 256, 64, 1, 1, 2},
    {64, 176, 256, 128, 1, 1, 1},  {64, 176, 128, 128, 3, 2, 1},  {64, 176, 256, 512, 1, 2, 1},
    {32, 88, 128, 512, 1, 1, 4},   {32, 88, 512, 128, 1, 1, 3},   {32, 88, 128, 128, 3, 1, 3},
    {32, 88, 512, 256, 1, 1, 1},   {32, 88, 256, 256, 3, 2, 1},   {32, 88, 512, 1024, 1, 2, 1},
    {16, 44, 256, 1024, 1, 1, 6},  {16, 44, 1024, 256, 1, 1, 5},  {16, 44, 256, 256, 3, 1, 5},
    {16, 44, 1024, 512, 1, 1, 1},  {16, 44, 512, 512, 3, 2, 1},   {16, 44, 1024, 2048, 1, 2, 1},
    {8, 22, 512, 2048, 1, 1, 3},   {8, 22, 2048, 512, 1, 1, 2},   {8, 22, 512, 512, 3, 1, 2},
    {64, 176, 256, 256, 1, 1, 1},  {32, 88, 512, 256, 1, 1, 1},   {16, 44, 1024, 256, 1, 1, 1},
    {8, 22, 2048, 256, 1, 1, 1},
    {64, 176, 256, 256, 3, 1, 1},  {32, 88, 256, 256, 3, 1, 1},   {16, 44, 256, 256, 3, 1, 1},
    {8, 22, 256, 256, 3, 1, 1}};

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    std::printf("error: %s\n", cudaGetErrorString(error));
    std::exit(1);
  }
}

void check(const std::string& problem) {
  if (!problem.empty()) {
    std::printf("error: %s\n", problem.c_str());
    std::exit(1);
  }
}

// Uniform in -1 ... 1, the same on every run.
__host__ __device__ float number(unsigned i, unsigned seed) {
  unsigned x = i * 2654435761u + seed;
  x ^= x >> 16, x *= 0x85ebca6bu, x ^= x >> 13, x *= 0xc2b2ae35u, x ^= x >> 16;
  return static_cast<float>(x) * (2.0f / 4294967296.0f) - 1.0f;
}

__global__ void fill(float* to, int count, unsigned seed, float scale, float shift) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = number(i, seed) * scale + shift;
}

// Sampled outputs and sums of absolute products in double precision.
__global__ void sample(const float* x, const float* w, Layer l, int pad, int oh, int ow,
                       int samples, unsigned* places, double* truth, double* bound) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= samples) return;
  const unsigned total = 6u * oh * ow * l.out;
  const unsigned place = (i * 2654435761u) % total;
  const int channel = place % l.out, column = place / l.out % ow, line = place / l.out / ow % oh;
  const int image = place / l.out / ow / oh;
  double sum = 0, size = 0;
  for (int r = 0; r < l.size; ++r) {
    for (int s = 0; s < l.size; ++s) {
      const int y = line * l.stride - pad + r, z = column * l.stride - pad + s;
      if (y < 0 || z < 0 || y >= l.height || z >= l.width) continue;
      for (int c = 0; c < l.in; ++c) {
        const double p = double(x[((int64_t{image} * l.height + y) * l.width + z) * l.in + c]) *
                         w[((int64_t{channel} * l.size + r) * l.size + s) * l.in + c];
        sum += p;
        size += fabs(p);
      }
    }
  }
  places[i] = place, truth[i] = sum, bound[i] = size;
}

template <class T>
T* allocate(std::size_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)));
  return static_cast<T*>(memory);
}

// Layers of the head on plain rows.
void time_linear_layers(const float* x, const float* w, const float* finish, float* out,
                        int repeats) {
  const int shapes[][3] = {{900, 256, 512}, {900, 512, 512},  {900, 512, 1024}, {900, 1024, 256},
                           {900, 512, 256}, {900, 256, 416}, {6, 256, 416}};
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  for (const auto& s : shapes) {
    s4d::SplitConvolution args;
    args.input_size = {1, s[0], 1, s[1]};
    args.output_size = {1, s[0], 1, s[2]};
    args.plain_input = true;
    args.input = x;
    args.weight = w;
    args.finish = finish;
    args.output = out;
    std::printf("%3d rows, %4d to %4d, us automatic, small, flat:", s[0], s[1], s[2]);
    for (s4d::SplitTile tile :
         {s4d::SplitTile::automatic, s4d::SplitTile::small, s4d::SplitTile::flat}) {
      for (int i = 0; i < 3; ++i) check(s4d::split_convolution_cuda(args, tile));
      check(cudaEventRecord(begin));
      for (int i = 0; i < repeats; ++i) check(s4d::split_convolution_cuda(args, tile));
      check(cudaEventRecord(end));
      check(cudaEventSynchronize(end));
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end));
      std::printf(" %6.1f", ms * 1000 / repeats);
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 20;
  using s4d::SplitTile;
  const SplitTile tiles[] = {SplitTile::automatic, SplitTile::large, SplitTile::tall,
                             SplitTile::small, SplitTile::flat};
  constexpr int kSamples = 4096;
  constexpr std::size_t kMost = 6u * 256 * 704 * 64;
  float* x = allocate<float>(kMost);
  float* parts = allocate<float>(kMost);
  float* out = allocate<float>(kMost);
  float* w = allocate<float>(1 << 23);
  float* weight = allocate<float>(1 << 23);
  float* finish = allocate<float>(4096);
  unsigned* places = allocate<unsigned>(kSamples);
  double* truth = allocate<double>(2 * kSamples);
  std::vector<float> ones(4096);
  double sums[6] = {};
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::printf("image, channels, kernel: us automatic, large, tall, small, flat; TFLOP/s of the "
              "first; largest error over the sum of absolute products, root mean square\n");
  for (const Layer& l : kLayers) {
    const int pad = l.size / 2, oh = (l.height + 2 * pad - l.size) / l.stride + 1;
    const int ow = (l.width + 2 * pad - l.size) / l.stride + 1;
    const int inputs = 6 * l.height * l.width * l.in, depth = l.size * l.size * l.in;
    const int row = (depth + 31) / 32 * 32;
    fill<<<(inputs + 255) / 256, 256>>>(x, inputs, 1, 4.0f, 1.0f);
    fill<<<(l.out * depth + 255) / 256, 256>>>(w, l.out * depth, 2, 16000.0f, 0.0f);
    check(s4d::split_values_cuda(x, inputs / l.in, l.in, parts, nullptr));
    // Low parts of weights are not scaled: split them here.
    std::vector<float> plain(static_cast<std::size_t>(l.out) * depth);
    check(cudaMemcpy(plain.data(), w, plain.size() * 4, cudaMemcpyDeviceToHost));
    std::vector<uint16_t> halves(static_cast<std::size_t>(l.out) * row * 2, 0);
    for (int k = 0; k < l.out; ++k) {
      for (int d = 0; d < depth; ++d) {
        const float value = plain[static_cast<std::size_t>(k) * depth + d];
        const _Float16 high = static_cast<_Float16>(value);
        const _Float16 low = static_cast<_Float16>(value - static_cast<float>(high));
        const std::size_t at = (static_cast<std::size_t>(k) * row + d / 8 * 8) * 2 + d % 8;
        std::memcpy(&halves[at], &high, 2);
        std::memcpy(&halves[at + 8], &low, 2);
      }
    }
    check(cudaMemcpy(weight, halves.data(), halves.size() * 2, cudaMemcpyHostToDevice));
    std::fill(ones.begin(), ones.begin() + l.out, 0.0f);
    std::fill(ones.begin() + l.out, ones.begin() + 2 * l.out, 1.0f / 16384);
    check(cudaMemcpy(finish, ones.data(), 8 * l.out, cudaMemcpyHostToDevice));
    sample<<<kSamples / 64, 64>>>(x, w, l, pad, oh, ow, kSamples, places, truth, truth + kSamples);
    s4d::SplitConvolution args;
    args.input_size = {6, l.height, l.width, l.in};
    args.output_size = {6, oh, ow, l.out};
    args.kernel = {l.size, l.size};
    args.stride = {l.stride, l.stride};
    args.pad = {pad, pad};
    args.input = parts;
    args.weight = weight;
    args.finish = finish;
    args.output = out;
    std::printf("%3d x %3d %4d to %4d, %d/%d x%d:", l.height, l.width, l.in, l.out, l.size,
                l.stride, l.times);
    double first = 0, best = 1e30, worst = 0, square = 0;
    for (int t = 0; t < 5; ++t) {
      check(cudaMemset(out, 0xff, static_cast<std::size_t>(6) * oh * ow * l.out * 4));
      args.split_output = false;
      check(s4d::split_convolution_cuda(args, tiles[t]));
      std::vector<float> got(static_cast<std::size_t>(6) * oh * ow * l.out);
      std::vector<unsigned> at(kSamples);
      std::vector<double> expected(2 * kSamples);
      check(cudaMemcpy(got.data(), out, got.size() * 4, cudaMemcpyDeviceToHost));
      check(cudaMemcpy(at.data(), places, kSamples * 4, cudaMemcpyDeviceToHost));
      check(cudaMemcpy(expected.data(), truth, kSamples * 16, cudaMemcpyDeviceToHost));
      for (int i = 0; i < kSamples; ++i) {
        const double bound = expected[kSamples + i];
        const double e = std::fabs(double(got[at[i]]) * 16384 - expected[i]) / bound;
        worst = e <= worst ? worst : e;  // NaN is the worst
        square += e * e / kSamples / 5;
      }
      args.split_output = true;
      for (int i = 0; i < 3; ++i) check(s4d::split_convolution_cuda(args, tiles[t]));
      check(cudaEventRecord(begin));
      for (int i = 0; i < repeats; ++i) check(s4d::split_convolution_cuda(args, tiles[t]));
      check(cudaEventRecord(end));
      check(cudaEventSynchronize(end));
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end));
      const double us = ms * 1000 / repeats;
      std::printf(" %7.1f", us);
      if (t == 0) first = us;
      best = std::min(best, us);
      sums[t] += us * l.times;
    }
    sums[5] += best * l.times;
    std::printf("  %4.0f  %.1e %.1e\n", 12.0 * oh * ow * l.out * depth / first / 1e6, worst,
                std::sqrt(square));
  }
  std::printf("all layers, us: automatic %.0f, large %.0f, tall %.0f, small %.0f, flat %.0f, "
              "best of each %.0f\n",
              sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]);
  time_linear_layers(x, w, finish, out, repeats);
  fill<<<6 * 256 * 704 * 3 / 256, 256>>>(x, 6 * 256 * 704 * 3, 1, 4.0f, 1.0f);
  check(cudaEventRecord(begin));
  for (int i = 0; i < repeats; ++i) {
    check(s4d::split_values_cuda(x, 6 * 256 * 704, 3, parts, nullptr));
  }
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin, end));
  std::printf("splitting the images %.1f us", ms * 1000 / repeats);
  s4d::SplitPool pool;
  pool.input_size = {6, 128, 352, 64};
  pool.output_size = {6, 64, 176, 64};
  pool.kernel = {3, 3};
  pool.stride = {2, 2};
  pool.pad = {1, 1};
  pool.split_output = true;
  pool.input = parts;
  pool.output = out;
  check(cudaEventRecord(begin));
  for (int i = 0; i < repeats; ++i) check(s4d::split_pool_cuda(pool));
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  check(cudaEventElapsedTime(&ms, begin, end));
  std::printf(", pooling %.1f us\n", ms * 1000 / repeats);
  return 0;
}
