// Entry points of the CUDA kernels: which kernel takes a call, scratch memory, conversions.
#include "deformable_aggregation_cuda.h"

#include "deformable_aggregation.cuh"
#include "deformable_aggregation_sums.cuh"

namespace s4d {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaximaBytes = 16;  // two floats, and the sums stay 16-byte aligned

// Largest |value|; NaN counts as larger than infinity. Bits of non-negative floats are ordered.
template <typename Real>
__global__ void largest(const void* data, int64_t size, DType type, uint32_t* result) {
  uint32_t mine = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += step) {
    const float value = sizeof(Real) == 8
                            ? __double2float_ru(fabs(static_cast<const double*>(data)[i]))
                            : fabsf(load_float(data, i, type));
    mine = max(mine, __float_as_uint(value) & 0x7fffffffu);
  }
  mine = warp_max(mine);
  if ((threadIdx.x & 31) == 0) atomicMax(result, mine);
}

// fp32 sums to half precision, eight at a time where memory allows.
template <typename Half>
__global__ void from_float(const float* sums, Half* out, int64_t size, bool wide) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t octets = wide ? size / 8 : 0;
  for (int64_t i = first; i < octets; i += step) {
    const float4 low = reinterpret_cast<const float4*>(sums)[2 * i];
    const float4 high = reinterpret_cast<const float4*>(sums)[2 * i + 1];
    alignas(16) const Half values[8] = {Half(low.x),  Half(low.y),  Half(low.z),  Half(low.w),
                                        Half(high.x), Half(high.y), Half(high.z), Half(high.w)};
    reinterpret_cast<uint4*>(out)[i] = *reinterpret_cast<const uint4*>(values);
  }
  for (int64_t i = 8 * octets + first; i < size; i += step) out[i] = Half(sums[i]);
}

__global__ void from_fixed(const long long* sums, const float* maxima, AggregationShape shape,
                           void* out, DType type, int64_t size) {
  const double unit = 1.0 / static_cast<double>(fixed_point_scale(maxima, shape));
  const bool finite = isfinite(maxima[0] * maxima[1]);
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += step) {
    const double value = finite ? static_cast<double>(sums[i]) * unit : nan("");
    if (type == DType::f64) {
      static_cast<double*>(out)[i] = value;
    } else {
      store_float(out, i, type, static_cast<float>(value));
    }
  }
}

uint32_t blocks_for(int64_t size) {
  const int64_t blocks = (size + kThreads - 1) / kThreads;
  return static_cast<uint32_t>(blocks < 1 ? 1 : (blocks < 4096 ? blocks : 4096));
}

template <typename Half>
void convert(const void* sums, void* out, int64_t size, cudaStream_t stream) {
  from_float<Half><<<blocks_for((size + 7) / 8), kThreads, 0, stream>>>(
      static_cast<const float*>(sums), static_cast<Half*>(out), size, aligned16(out));
}

std::string find_largest(const void* data, int64_t size, DType type, uint32_t* result,
                         cudaStream_t stream) {
  if (type == DType::f64) {
    largest<double><<<blocks_for(size), kThreads, 0, stream>>>(data, size, type, result);
  } else {
    largest<float><<<blocks_for(size), kThreads, 0, stream>>>(data, size, type, result);
  }
  return status(cudaGetLastError(), "deformable aggregation backward");
}

std::string zero(void* data, int64_t bytes, cudaStream_t stream) {
  if (data == nullptr || bytes == 0) return {};
  return status(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream),
                "deformable aggregation");
}

bool any_f64(DType a, DType b, DType c) {
  return a == DType::f64 || b == DType::f64 || c == DType::f64;
}

bool all_f64(DType a, DType b, DType c) {
  return a == DType::f64 && b == DType::f64 && c == DType::f64;
}

std::string check_types(DType features, DType locations, DType weights) {
  if (any_f64(features, locations, weights) && !all_f64(features, locations, weights)) {
    return std::string("expected features, locations and weights all float64 or none, got ") +
           name(features) + ", " + name(locations) + " and " + name(weights);
  }
  return {};
}

std::string backward(const AggregationBackward& call) {
  const AggregationShape& shape = call.shape;
  const cudaStream_t stream = static_cast<cudaStream_t>(call.stream);
  const int64_t elements = shape.batch * shape.rows * shape.channels;
  void* sums = nullptr;
  float* maxima = nullptr;
  std::string error;
  if (call.grad_features != nullptr) {
    const int64_t needed = aggregation_backward_workspace(call);
    if (needed > 0 && (call.workspace == nullptr || call.workspace_bytes < needed ||
                       !aligned16(call.workspace))) {
      return "expected a 16-byte aligned workspace of " + std::to_string(needed) + " bytes, got " +
             std::to_string(call.workspace == nullptr ? 0 : call.workspace_bytes);
    }
    if (needed > 0) {
      sums = call.workspace;
      if (call.deterministic) {
        maxima = static_cast<float*>(call.workspace);
        sums = static_cast<char*>(call.workspace) + kMaximaBytes;
      }
      error = zero(call.workspace, needed, stream);
    } else {
      sums = call.grad_features;
      error = zero(sums, elements * static_cast<int64_t>(size_of(call.feature_type)), stream);
    }
  }
  const int64_t pairs = shape.batch * shape.anchors * shape.points * shape.views;
  const int64_t weights = pairs * shape.levels * shape.groups;
  if (error.empty() && maxima != nullptr) {
    uint32_t* bits = reinterpret_cast<uint32_t*>(maxima);
    error = find_largest(call.weights, weights, call.weight_type, bits, stream);
    if (error.empty()) {
      error = find_largest(call.grad_output, shape.batch * shape.anchors * shape.channels,
                           call.feature_type, bits + 1, stream);
    }
  }
  if (!error.empty()) return error;

  if (shape.rows == 0 || shape.channels == 0) {
    error = zero(call.grad_locations, 2 * pairs * size_of(call.location_type), stream);
    if (error.empty()) error = zero(call.grad_weights, weights * size_of(call.weight_type), stream);
  } else if (pairs > 0) {
    bool taken = false;
    error = launch_vector_backward(call, sums, maxima, &taken);
    if (error.empty() && !taken) error = launch_general_backward(call, sums, maxima);
  }
  if (!error.empty() || call.grad_features == nullptr || elements == 0) return error;
  if (maxima != nullptr) {
    from_fixed<<<blocks_for(elements), kThreads, 0, stream>>>(
        static_cast<const long long*>(sums), maxima, shape, call.grad_features, call.feature_type,
        elements);
  } else if (call.feature_type == DType::f16) {
    convert<__half>(sums, call.grad_features, elements, stream);
  } else if (call.feature_type == DType::bf16) {
    convert<__nv_bfloat16>(sums, call.grad_features, elements, stream);
  }
  return status(cudaGetLastError(), "deformable aggregation backward");
}

}  // namespace
}  // namespace cuda

std::string aggregation_forward_cuda(const AggregationForward& call) {
  const AggregationShape& shape = call.shape;
  std::string error = cuda::check_types(call.feature_type, call.location_type, call.weight_type);
  if (!error.empty()) return error;
  const int64_t outputs = shape.batch * shape.anchors * shape.channels;
  if (outputs == 0) return {};
  if (shape.rows == 0 || shape.points * shape.views * shape.levels == 0) {
    return cuda::zero(call.output, outputs * static_cast<int64_t>(size_of(call.output_type)),
                      static_cast<cudaStream_t>(call.stream));
  }
  bool taken = false;
  error = cuda::launch_vector_forward(call, &taken);
  if (!error.empty() || taken) return error;
  return cuda::launch_general_forward(call);
}

int64_t aggregation_backward_workspace(const AggregationBackward& call) {
  if (call.grad_features == nullptr) return 0;
  const int64_t elements = call.shape.batch * call.shape.rows * call.shape.channels;
  if (call.deterministic) return cuda::kMaximaBytes + 8 * elements;
  return size_of(call.feature_type) < 4 ? 4 * elements : 0;
}

std::string aggregation_backward_cuda(const AggregationBackward& call) {
  const std::string error =
      cuda::check_types(call.feature_type, call.location_type, call.weight_type);
  return error.empty() ? cuda::backward(call) : error;
}

}  // namespace s4d
