// Deformable aggregation: the contract between the kernels (CPU, CUDA) and the doors.
//
// Every tensor is contiguous, row-major:
//   features            (B, F, C)           rows camera-major, then level, then row-major pixels
//   spatial_shapes      (N, L, 2)           (height, width) of each level of each view
//   level_start_index   (N, L)              first row of each level, absolute across views
//   sampling_locations  (B, A, P, N, 2)     (x, y), 0..1 over the image
//   weights             (B, A, P, N, L, G)
//   output              (B, A, C)
//
// output[b,a,c] = sum over p, n, l of weights[b,a,p,n,l,c/(C/G)] * bilinear(features of (n,l), x, y)
//
// The sample lies at pixel (x * width - 0.5, y * height - 0.5); neighbours outside the map are
// zero. A point counts only if 0 < x < 1 and 0 < y < 1: NaN and infinite locations therefore
// contribute nothing, neither to the output nor to any gradient.
#pragma once

#include <string>

#include "types.h"

namespace s4d {

struct AggregationShape {
  int64_t batch = 0;     // B
  int64_t rows = 0;      // F
  int64_t channels = 0;  // C, a multiple of groups
  int64_t views = 0;     // N
  int64_t levels = 0;    // L
  int64_t anchors = 0;   // A
  int64_t points = 0;    // P
  int64_t groups = 0;    // G
};

// Types: features f32, f16, bf16 (f32 arithmetic) or f64 (f64 arithmetic). Locations and weights
// are each f32, f16 or bf16; all three are f64 if one of them is. index_type is i32 or i64, for
// both index tensors. The output has the type of the features, a gradient that of its input.
// i8 features (feature_scale applies, output f32 or f16) are a TensorRT CUDA case only.
struct AggregationForward {
  AggregationShape shape;
  DType feature_type = DType::f32;
  DType location_type = DType::f32;
  DType weight_type = DType::f32;
  DType index_type = DType::i64;
  DType output_type = DType::f32;
  float feature_scale = 1.0f;  // i8 features only: value = scale * stored

  const void* features = nullptr;
  const void* spatial_shapes = nullptr;
  const void* level_start_index = nullptr;
  const void* locations = nullptr;
  const void* weights = nullptr;
  void* output = nullptr;  // every element is written

  void* stream = nullptr;  // cudaStream_t; not used by the CPU kernels
};

struct AggregationBackward {
  AggregationShape shape;
  DType feature_type = DType::f32;   // also grad_output and grad_features
  DType location_type = DType::f32;  // also grad_locations
  DType weight_type = DType::f32;    // also grad_weights
  DType index_type = DType::i64;

  const void* features = nullptr;
  const void* spatial_shapes = nullptr;
  const void* level_start_index = nullptr;
  const void* locations = nullptr;
  const void* weights = nullptr;
  const void* grad_output = nullptr;  // (B, A, C)

  // Each may be null: not wanted. Otherwise every element is written by the CPU kernel.
  void* grad_features = nullptr;
  void* grad_locations = nullptr;
  void* grad_weights = nullptr;

  bool deterministic = false;  // CUDA; the CPU kernels are always deterministic
  void* workspace = nullptr;   // CUDA: scratch memory where a kernel needs it
  int64_t workspace_bytes = 0;
  void* stream = nullptr;
};

// The one place where shapes and types are checked. Returns an empty string and fills `shape`,
// or says in one sentence what was expected and what came.
std::string check_aggregation(TensorShape features, TensorShape spatial_shapes,
                              TensorShape level_start_index, TensorShape locations,
                              TensorShape weights, AggregationShape* shape);

// Checks that every level named by the two index tensors lies inside the feature rows. For index
// tensors in host memory (kernels that read them on a device guard there).
std::string check_level_table(const AggregationShape& shape, DType index_type,
                              const void* spatial_shapes, const void* level_start_index);

// CPU kernels. Empty string on success. `threads` <= 0 takes the default (S4D_NUM_THREADS, else
// the number of cores this process may use). The result does not depend on `threads`.
std::string aggregation_forward_cpu(const AggregationForward& args, int threads = 0);
std::string aggregation_backward_cpu(const AggregationBackward& args, int threads = 0);

}  // namespace s4d
