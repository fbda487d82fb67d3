// What the CPU and the CUDA side of the torch door share: from stable tensors to the core's
// arguments. Outputs are allocated here, on the device of the features.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <tuple>

#include "core/deformable_aggregation.h"

namespace s4d_torch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline s4d::DType dtype_of(const Tensor& tensor, const char* what) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return s4d::DType::f32;
    case ScalarType::Double: return s4d::DType::f64;
    case ScalarType::Half: return s4d::DType::f16;
    case ScalarType::BFloat16: return s4d::DType::bf16;
    case ScalarType::Int: return s4d::DType::i32;
    case ScalarType::Long: return s4d::DType::i64;
    default:
      STD_TORCH_CHECK(false, "deformable_aggregation: ", what,
                      " has a type that is not supported; use float32, float64, float16 or "
                      "bfloat16 values and int32 or int64 indices");
  }
}

inline s4d::TensorShape shape_of(const Tensor& tensor, const char* what) {
  const auto sizes = tensor.sizes();
  return {sizes.data(), static_cast<int64_t>(sizes.size()), dtype_of(tensor, what)};
}

inline void* pointer(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : tensor.data_ptr();
}

// The five inputs, contiguous and checked. The members keep the memory alive.
struct AggregationInputs {
  Tensor features, spatial_shapes, level_start_index, locations, weights;
  s4d::AggregationShape shape;

  AggregationInputs(const Tensor& features_in, const Tensor& spatial_shapes_in,
                    const Tensor& level_start_index_in, const Tensor& locations_in,
                    const Tensor& weights_in)
      : features(torch::stable::contiguous(features_in)),
        spatial_shapes(torch::stable::contiguous(spatial_shapes_in)),
        level_start_index(torch::stable::contiguous(level_start_index_in)),
        locations(torch::stable::contiguous(locations_in)),
        weights(torch::stable::contiguous(weights_in)) {
    const std::string problem = s4d::check_aggregation(
        shape_of(features, "features"), shape_of(spatial_shapes, "spatial_shapes"),
        shape_of(level_start_index, "level_start_index"),
        shape_of(locations, "sampling_locations"), shape_of(weights, "weights"), &shape);
    STD_TORCH_CHECK(problem.empty(), problem);
    const Tensor* const others[] = {&spatial_shapes, &level_start_index, &locations, &weights};
    for (const Tensor* other : others) {
      STD_TORCH_CHECK(other->device() == features.device(),
                      "deformable_aggregation: expected all inputs on the device of features");
    }
  }

  // Works for AggregationForward and AggregationBackward.
  template <class Args>
  void fill(Args& args) const {
    args.shape = shape;
    args.feature_type = dtype_of(features, "features");
    args.location_type = dtype_of(locations, "sampling_locations");
    args.weight_type = dtype_of(weights, "weights");
    args.index_type = dtype_of(spatial_shapes, "spatial_shapes");
    args.features = pointer(features);
    args.spatial_shapes = pointer(spatial_shapes);
    args.level_start_index = pointer(level_start_index);
    args.locations = pointer(locations);
    args.weights = pointer(weights);
  }

  Tensor new_output() const {
    return torch::stable::new_empty(features, {shape.batch, shape.anchors, shape.channels});
  }
};

// The gradients asked for, uninitialised; the others are empty tensors and null pointers.
struct AggregationGradients {
  Tensor features, locations, weights;

  AggregationGradients(const AggregationInputs& in, bool need_features, bool need_locations,
                       bool need_weights)
      : features(make(in.features, need_features)),
        locations(make(in.locations, need_locations)),
        weights(make(in.weights, need_weights)) {}

  void fill(s4d::AggregationBackward& args) const {
    args.grad_features = pointer(features);
    args.grad_locations = pointer(locations);
    args.grad_weights = pointer(weights);
  }

  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {features, locations, weights}; }

 private:
  static Tensor make(const Tensor& like, bool needed) {
    return needed ? torch::stable::empty_like(like) : torch::stable::new_empty(like, {0});
  }
};

// The gradient of the output, in the layout and type that the kernels read.
inline Tensor checked_grad_output(const AggregationInputs& in, const Tensor& grad_output) {
  Tensor grad = torch::stable::contiguous(grad_output);
  const auto sizes = grad.sizes();
  STD_TORCH_CHECK(sizes.size() == 3 && sizes[0] == in.shape.batch &&
                      sizes[1] == in.shape.anchors && sizes[2] == in.shape.channels &&
                      grad.scalar_type() == in.features.scalar_type() &&
                      grad.device() == in.features.device(),
                  "deformable_aggregation_backward: expected grad_output (B, A, C) of the type "
                  "and on the device of features");
  return grad;
}

// The forward pass of a device: `run(args)` calls its kernels and returns the problem, if any.
template <class Run>
Tensor forward_with(const Tensor& features, const Tensor& spatial_shapes,
                    const Tensor& level_start_index, const Tensor& locations,
                    const Tensor& weights, const Run& run) {
  const AggregationInputs in(features, spatial_shapes, level_start_index, locations, weights);
  Tensor output = in.new_output();
  s4d::AggregationForward args;
  in.fill(args);
  args.output_type = args.feature_type;
  args.output = pointer(output);
  const std::string problem = run(args);
  STD_TORCH_CHECK(problem.empty(), problem);
  return output;
}

// The gradients wanted, in the order in which the operator takes them.
struct Wanted {
  bool features, locations, weights, deterministic;
};

// The backward pass of a device, likewise.
template <class Run>
std::tuple<Tensor, Tensor, Tensor> backward_with(
    const Tensor& grad_output, const Tensor& features, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& locations, const Tensor& weights,
    const Wanted& wanted, const Run& run) {
  const AggregationInputs in(features, spatial_shapes, level_start_index, locations, weights);
  const Tensor grad = checked_grad_output(in, grad_output);
  const AggregationGradients out(in, wanted.features, wanted.locations, wanted.weights);
  s4d::AggregationBackward args;
  in.fill(args);
  out.fill(args);
  args.grad_output = pointer(grad);
  args.deterministic = wanted.deterministic;
  const std::string problem = run(args);
  STD_TORCH_CHECK(problem.empty(), problem);
  return out.tuple();
}

}  // namespace s4d_torch
