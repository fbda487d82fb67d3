// Operator schemas. The CPU library defines them; the CUDA library only adds implementations and
// is loaded after it.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(s4d, m) {
  m.def(
      "deformable_aggregation(Tensor features, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor weights) -> Tensor");
  // A gradient that is not needed comes back as an empty tensor of shape (0,).
  m.def(
      "deformable_aggregation_backward(Tensor grad_output, Tensor features, "
      "Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
      "Tensor weights, bool need_features, bool need_locations, bool need_weights, "
      "bool deterministic) -> (Tensor, Tensor, Tensor)");
}
