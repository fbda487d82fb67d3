// Deformable aggregation for any number of channels, any alignment, and float64: one scalar per
// load. Right first; the 16-byte kernels take every shape that fits them.
#include "deformable_aggregation.cuh"
#include "deformable_aggregation_sums.cuh"

namespace s4d::cuda {
namespace {

constexpr int kThreads = 128;

template <typename Real>
__device__ inline Real load_real(const void* data, int64_t index, DType type) {
  if constexpr (sizeof(Real) == 8) return static_cast<const double*>(data)[index];
  else return load_float(data, index, type);
}

template <typename Real>
__device__ inline void store_real(void* data, int64_t index, DType type, Real value) {
  if constexpr (sizeof(Real) == 8) static_cast<double*>(data)[index] = value;
  else store_float(data, index, type, value);
}

// The four neighbours of one sample: first channel of each row, or -1 outside the map.
template <typename Real>
struct Samples {
  int64_t row[4];
  Real share[4];
  Real fx, fy, width, height;
  bool any;

  template <typename Call>
  __device__ Samples(const Call& call, int64_t view_level, Real x, Real y) : any(false) {
    const Level map = load_level(call.spatial_shapes, call.level_start_index, call.index_type,
                                 view_level, call.shape.rows);
    if (map.height == 0) return;
    any = true;
    const Bilinear<Real, int64_t> at = locate(x, y, map.height, map.width);
    fx = at.fx;
    fy = at.fy;
    width = static_cast<Real>(map.width);
    height = static_cast<Real>(map.height);
    const int64_t first = map.first + at.y0 * map.width + at.x0;
    row[0] = at.up && at.left ? first : -1;
    row[1] = at.up && at.right ? first + 1 : -1;
    row[2] = at.down && at.left ? first + map.width : -1;
    row[3] = at.down && at.right ? first + map.width + 1 : -1;
    share[0] = (Real(1) - fy) * (Real(1) - fx);
    share[1] = (Real(1) - fy) * fx;
    share[2] = fy * (Real(1) - fx);
    share[3] = fy * fx;
  }
};

// One block per anchor, one thread per channel.
template <typename Feature, typename Real>
__global__ void __launch_bounds__(kThreads) forward_kernel(const AggregationForward call) {
  const AggregationShape& shape = call.shape;
  const Feature* features = static_cast<const Feature*>(call.features);
  const int64_t per_group = shape.channels / shape.groups;
  for (int64_t item = blockIdx.x; item < shape.batch * shape.anchors; item += gridDim.x) {
    const int64_t sample = item / shape.anchors;
    for (int64_t c = threadIdx.x; c < shape.channels; c += kThreads) {
      Real sum = Real(0);
      for (int64_t pair = 0; pair < shape.points * shape.views; ++pair) {
        const int64_t at = item * shape.points * shape.views + pair;
        const Real x = load_real<Real>(call.locations, 2 * at, call.location_type);
        const Real y = load_real<Real>(call.locations, 2 * at + 1, call.location_type);
        if (!counts(x, y)) continue;
        for (int64_t level = 0; level < shape.levels; ++level) {
          const Samples<Real> at_level(call, pair % shape.views * shape.levels + level, x, y);
          if (!at_level.any) continue;
          Real value = Real(0);
          for (int k = 0; k < 4; ++k) {
            if (at_level.row[k] < 0) continue;
            const int64_t element = (sample * shape.rows + at_level.row[k]) * shape.channels + c;
            value += at_level.share[k] * static_cast<Real>(features[element]);
          }
          const int64_t w = (at * shape.levels + level) * shape.groups + c / per_group;
          sum += load_real<Real>(call.weights, w, call.weight_type) * value;
        }
      }
      sum *= static_cast<Real>(call.feature_scale);
      store_real<Real>(call.output, item * shape.channels + c, call.output_type, sum);
    }
  }
}

template <typename Real>
__device__ inline Real warp_sum(Real value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// One warp per (anchor, point, view); lanes run over the channels of a group.
template <typename Feature, typename Real>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const AggregationBackward call, void* sums, const float* maxima) {
  const AggregationShape& shape = call.shape;
  const Feature* features = static_cast<const Feature*>(call.features);
  const Feature* grad_output = static_cast<const Feature*>(call.grad_output);
  const int64_t per_group = shape.channels / shape.groups;
  const int64_t pairs = shape.points * shape.views;
  const int64_t total = shape.batch * shape.anchors * pairs;
  const int lane = threadIdx.x & 31;
  const double scale = maxima == nullptr ? 0.0 : fixed_point_scale(maxima, shape);
  const int64_t first = blockIdx.x * int64_t{kThreads / 32} + (threadIdx.x >> 5);
  for (int64_t at = first; at < total; at += gridDim.x * int64_t{kThreads / 32}) {
    const int64_t item = at / pairs;
    const int64_t sample = item / shape.anchors;
    const int64_t view = at % shape.views;
    const Real x = load_real<Real>(call.locations, 2 * at, call.location_type);
    const Real y = load_real<Real>(call.locations, 2 * at + 1, call.location_type);
    const bool seen = counts(x, y);
    Real slope_x = Real(0), slope_y = Real(0);
    for (int64_t level = 0; level < shape.levels; ++level) {
      const int64_t first_weight = (at * shape.levels + level) * shape.groups;
      const Samples<Real> at_level(call, view * shape.levels + level, x, y);
      const bool live = seen && at_level.any;
      for (int64_t g = 0; g < shape.groups; ++g) {
        Real dots[4] = {};
        const Real weight =
            live ? load_real<Real>(call.weights, first_weight + g, call.weight_type) : Real(0);
        for (int64_t i = lane; live && i < per_group; i += 32) {
          const int64_t c = g * per_group + i;
          const Real grad = static_cast<Real>(grad_output[item * shape.channels + c]);
          for (int k = 0; k < 4; ++k) {
            if (at_level.row[k] < 0) continue;
            const int64_t element = (sample * shape.rows + at_level.row[k]) * shape.channels + c;
            dots[k] += grad * static_cast<Real>(features[element]);
            if (sums == nullptr) continue;
            const Real term = at_level.share[k] * weight * grad;
            if (maxima != nullptr) {
              add_fixed(static_cast<unsigned long long*>(sums) + element, term, scale);
            } else {
              atomicAdd(static_cast<Real*>(sums) + element, term);
            }
          }
        }
        Real along = Real(0);
        for (int k = 0; k < 4; ++k) {
          dots[k] = warp_sum(dots[k]);
          if (!live) continue;
          along += at_level.share[k] * dots[k];
          const Real across_y = (k & 2) != 0 ? at_level.fy : Real(1) - at_level.fy;
          const Real across_x = (k & 1) != 0 ? at_level.fx : Real(1) - at_level.fx;
          slope_x += weight * dots[k] * at_level.width * ((k & 1) != 0 ? across_y : -across_y);
          slope_y += weight * dots[k] * at_level.height * ((k & 2) != 0 ? across_x : -across_x);
        }
        if (lane == 0 && call.grad_weights != nullptr) {
          store_real<Real>(call.grad_weights, first_weight + g, call.weight_type, along);
        }
      }
    }
    if (lane == 0 && call.grad_locations != nullptr) {
      store_real<Real>(call.grad_locations, 2 * at, call.location_type, slope_x);
      store_real<Real>(call.grad_locations, 2 * at + 1, call.location_type, slope_y);
    }
  }
}

uint32_t grid_of(int64_t blocks) {
  return static_cast<uint32_t>(blocks < 0x7fffffff ? blocks : 0x7fffffff);
}

template <typename Feature, typename Real>
std::string forward(const AggregationForward& call) {
  const uint32_t grid = grid_of(call.shape.batch * call.shape.anchors);
  forward_kernel<Feature, Real>
      <<<grid, kThreads, 0, static_cast<cudaStream_t>(call.stream)>>>(call);
  return status(cudaGetLastError(), "deformable aggregation forward");
}

template <typename Feature, typename Real>
std::string backward(const AggregationBackward& call, void* sums, const float* maxima) {
  const AggregationShape& shape = call.shape;
  const int64_t warps = shape.batch * shape.anchors * shape.points * shape.views;
  const uint32_t grid = grid_of((warps + 3) / 4);
  backward_kernel<Feature, Real>
      <<<grid, kThreads, 0, static_cast<cudaStream_t>(call.stream)>>>(call, sums, maxima);
  return status(cudaGetLastError(), "deformable aggregation backward");
}

}  // namespace

std::string launch_general_forward(const AggregationForward& call) {
  switch (call.feature_type) {
    case DType::f32: return forward<float, float>(call);
    case DType::f64: return forward<double, double>(call);
    case DType::f16: return forward<__half, float>(call);
    case DType::bf16: return forward<__nv_bfloat16, float>(call);
    case DType::i8: return forward<int8_t, float>(call);
    default: return std::string("no CUDA kernel for ") + name(call.feature_type) + " features";
  }
}

std::string launch_general_backward(const AggregationBackward& call, void* sums,
                                    const float* maxima) {
  switch (call.feature_type) {
    case DType::f32: return backward<float, float>(call, sums, maxima);
    case DType::f64: return backward<double, double>(call, sums, maxima);
    case DType::f16: return backward<__half, float>(call, sums, maxima);
    case DType::bf16: return backward<__nv_bfloat16, float>(call, sums, maxima);
    default: return std::string("no CUDA gradient for ") + name(call.feature_type) + " features";
  }
}

}  // namespace s4d::cuda
