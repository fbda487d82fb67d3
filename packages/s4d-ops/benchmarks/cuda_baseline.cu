// The plain way to write deformable aggregation, as a yardstick: one thread per (sample, anchor,
// point, view, level, channel), fp32, every contribution added with an atomic. Outputs must be
// zero before the call.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

struct Shape {
  int64_t batch, rows, channels, views, levels, anchors, points, groups;
};

struct Item {
  int64_t sample, anchor_row, channel, weight, location, level_row;
  float x, y;
};

__device__ bool find_item(const Shape& s, int64_t index, const float* locations, Item* item) {
  item->channel = index % s.channels;
  int64_t rest = index / s.channels;
  const int64_t level = rest % s.levels;
  rest /= s.levels;
  const int64_t view = rest % s.views;
  item->location = rest;  // (b, a, p, n)
  rest /= s.views * s.points;
  item->anchor_row = rest;  // (b, a)
  item->sample = rest / s.anchors;
  item->level_row = view * s.levels + level;
  item->weight = (item->location * s.levels + level) * s.groups +
                 item->channel / (s.channels / s.groups);
  item->x = locations[2 * item->location];
  item->y = locations[2 * item->location + 1];
  return item->x > 0 && item->x < 1 && item->y > 0 && item->y < 1;
}

__global__ void forward(Shape s, const float* features, const int* shapes, const int* starts,
                        const float* locations, const float* weights, float* output) {
  const int64_t index = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  const int64_t total =
      s.batch * s.anchors * s.points * s.views * s.levels * s.channels;
  Item at;
  if (index >= total || !find_item(s, index, locations, &at)) return;
  const int height = shapes[2 * at.level_row], width = shapes[2 * at.level_row + 1];
  const float px = at.x * width - 0.5f, py = at.y * height - 0.5f;
  const int x0 = static_cast<int>(floorf(px)), y0 = static_cast<int>(floorf(py));
  const float fx = px - x0, fy = py - y0;
  float value = 0;
  for (int k = 0; k < 4; ++k) {
    const int x = x0 + (k & 1), y = y0 + (k >> 1);
    if (x < 0 || y < 0 || x >= width || y >= height) continue;
    const int64_t row = at.sample * s.rows + starts[at.level_row] + int64_t{y} * width + x;
    value += ((k & 1) ? fx : 1 - fx) * ((k >> 1) ? fy : 1 - fy) *
             features[row * s.channels + at.channel];
  }
  atomicAdd(output + at.anchor_row * s.channels + at.channel, weights[at.weight] * value);
}

__global__ void backward(Shape s, const float* features, const int* shapes, const int* starts,
                         const float* locations, const float* weights, const float* grad_output,
                         float* grad_features, float* grad_locations, float* grad_weights) {
  const int64_t index = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  const int64_t total =
      s.batch * s.anchors * s.points * s.views * s.levels * s.channels;
  Item at;
  if (index >= total || !find_item(s, index, locations, &at)) return;
  const int height = shapes[2 * at.level_row], width = shapes[2 * at.level_row + 1];
  const float px = at.x * width - 0.5f, py = at.y * height - 0.5f;
  const int x0 = static_cast<int>(floorf(px)), y0 = static_cast<int>(floorf(py));
  const float fx = px - x0, fy = py - y0;
  const float weight = weights[at.weight];
  const float grad = grad_output[at.anchor_row * s.channels + at.channel];
  float value = 0, slope_x = 0, slope_y = 0;
  for (int k = 0; k < 4; ++k) {
    const int x = x0 + (k & 1), y = y0 + (k >> 1);
    if (x < 0 || y < 0 || x >= width || y >= height) continue;
    const int64_t row = at.sample * s.rows + starts[at.level_row] + int64_t{y} * width + x;
    const float wx = (k & 1) ? fx : 1 - fx, wy = (k >> 1) ? fy : 1 - fy;
    const float feature = features[row * s.channels + at.channel];
    value += wx * wy * feature;
    slope_x += ((k & 1) ? wy : -wy) * feature;
    slope_y += ((k >> 1) ? wx : -wx) * feature;
    atomicAdd(grad_features + row * s.channels + at.channel, wx * wy * weight * grad);
  }
  atomicAdd(grad_weights + at.weight, grad * value);
  atomicAdd(grad_locations + 2 * at.location, width * weight * grad * slope_x);
  atomicAdd(grad_locations + 2 * at.location + 1, height * weight * grad * slope_y);
}

int64_t blocks_of(const Shape& s) {
  return (s.batch * s.anchors * s.points * s.views * s.levels * s.channels + 127) / 128;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int baseline_forward(
    const int64_t* sizes, const float* features, const int* shapes, const int* starts,
    const float* locations, const float* weights, float* output, void* stream) {
  const Shape s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]};
  forward<<<static_cast<uint32_t>(blocks_of(s)), 128, 0, static_cast<cudaStream_t>(stream)>>>(
      s, features, shapes, starts, locations, weights, output);
  return static_cast<int>(cudaGetLastError());
}

extern "C" __attribute__((visibility("default"))) int baseline_backward(
    const int64_t* sizes, const float* features, const int* shapes, const int* starts,
    const float* locations, const float* weights, const float* grad_output, float* grad_features,
    float* grad_locations, float* grad_weights, void* stream) {
  const Shape s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]};
  backward<<<static_cast<uint32_t>(blocks_of(s)), 128, 0, static_cast<cudaStream_t>(stream)>>>(
      s, features, shapes, starts, locations, weights, grad_output, grad_features, grad_locations,
      grad_weights);
  return static_cast<int>(cudaGetLastError());
}
