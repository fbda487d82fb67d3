// CPU implementations of the torch operators. The threads are torch's own.
#include <torch/csrc/stable/library.h>

#include "aggregation_common.h"
#include "core/parallel.h"

namespace {

struct Work {
  void (*run)(void*);
  void* data;
};

// at::parallel_for gives each of torch's threads a range of calls.
bool run_on_torch(void*, int count, void (*work)(void*), void* data) {
  Work item{work, data};
  const auto range = [](int64_t begin, int64_t end, void* pointer) {
    const Work& todo = *static_cast<const Work*>(pointer);
    for (int64_t i = begin; i < end; ++i) todo.run(todo.data);
  };
  return torch_parallel_for(0, count, 1, range, &item) == AOTI_TORCH_SUCCESS;
}

using s4d_torch::Tensor;

Tensor forward(const Tensor& features, const Tensor& spatial_shapes,
               const Tensor& level_start_index, const Tensor& locations, const Tensor& weights) {
  const auto run = [](const s4d::AggregationForward& args) {
    const s4d::HostThreads threads(&run_on_torch, nullptr);
    return s4d::aggregation_forward_cpu(args, static_cast<int>(torch::stable::get_num_threads()));
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
  const auto run = [](const s4d::AggregationBackward& args) {
    const s4d::HostThreads threads(&run_on_torch, nullptr);
    return s4d::aggregation_backward_cpu(args, static_cast<int>(torch::stable::get_num_threads()));
  };
  return s4d_torch::backward_with(grad_output, features, spatial_shapes, level_start_index,
                                  locations, weights,
                                  {need_features, need_locations, need_weights, deterministic},
                                  run);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s4d, CPU, m) {
  m.impl("deformable_aggregation", TORCH_BOX(&forward));
  m.impl("deformable_aggregation_backward", TORCH_BOX(&backward));
}
