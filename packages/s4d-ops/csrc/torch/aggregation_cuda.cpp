// CUDA implementations of the torch operators, on the caller's current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "aggregation_common.h"
#include "core/deformable_aggregation_cuda.h"
#include "current_stream_cuda.h"

namespace {

using s4d_torch::Tensor;

Tensor forward(const Tensor& features, const Tensor& spatial_shapes,
               const Tensor& level_start_index, const Tensor& locations, const Tensor& weights) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const auto run = [&](s4d::AggregationForward& args) {
    args.stream = s4d_torch::current_stream(features.get_device_index());
    return s4d::aggregation_forward_cuda(args);
  };
  return s4d_torch::forward_with(features, spatial_shapes, level_start_index, locations, weights,
                                 run);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& features,
                                            const Tensor& spatial_shapes,
                                            const Tensor& level_start_index,
                                            const Tensor& locations, const Tensor& weights,
                                            bool need_features, bool need_locations,
                                            bool need_weights, bool deterministic) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const auto run = [&](s4d::AggregationBackward& args) {
    args.stream = s4d_torch::current_stream(features.get_device_index());
    args.workspace_bytes = s4d::aggregation_backward_workspace(args);
    // From torch's caching allocator: freed memory is reused only after this stream's kernels.
    const Tensor workspace = torch::stable::new_empty(features, {args.workspace_bytes},
                                                      torch::headeronly::ScalarType::Byte);
    args.workspace = s4d_torch::pointer(workspace);
    return s4d::aggregation_backward_cuda(args);
  };
  return s4d_torch::backward_with(grad_output, features, spatial_shapes, level_start_index,
                                  locations, weights,
                                  {need_features, need_locations, need_weights, deterministic},
                                  run);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s4d, CUDA, m) {
  m.impl("deformable_aggregation", TORCH_BOX(&forward));
  m.impl("deformable_aggregation_backward", TORCH_BOX(&backward));
}
