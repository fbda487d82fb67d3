// CUDA sides of the sparse torch operators: convolutions and the gradient of their weights, on the
// caller's current stream, without waiting. Tables must come from the rulebook operators.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "sparse_call_cuda.h"

namespace {

using namespace s4d_torch;
using namespace s4d::sparse;

// Rows with the padding that the core reads; the tensor itself where it needs none.
Tensor padded(const Tensor& rows, DType type) {
  const int64_t channels = rows.size(1);
  const int64_t width = padded_channels(type, small(channels, "channels"));
  if (channels == width) return rows;
  Tensor wide = torch::stable::new_zeros(rows, {rows.size(0), width}, rows.scalar_type());
  Tensor part = torch::stable::narrow(wide, 1, 0, channels);
  torch::stable::copy_(part, rows);
  return wide;
}

Tensor unpadded(Tensor rows, int64_t channels) {
  if (rows.size(1) == channels) return rows;
  return torch::stable::contiguous(torch::stable::narrow(rows, 1, 0, channels));
}

// What the two convolutions share: pack, run, drop the padding.
Tensor convolve_with(const Call& call, ConvolutionTask& task, const Tensor& features,
                     const Tensor& weight, const Tensor& table, bool transposed, int64_t columns,
                     ScalarType out_type, DType out_dtype) {
  const int64_t depth = features.size(1);
  const int64_t volume = weight.size(1);
  const Tensor rows = padded(features, task.type);
  const int32_t in_channels = small(weight.size(2), "channels");
  const int32_t out_channels = small(weight.size(0), "channels");
  const Tensor packed = call.bytes(packed_weight_bytes(
      task.type, small(volume, "kernel offsets"), small(depth, "channels"),
      small(columns, "channels")));
  const DType source = task.type == DType::i8 ? DType::i8 : half_or_float(weight, "weight");
  require(pack_weights(task.type, pointer(weight), source, static_cast<int32_t>(volume),
                       in_channels, out_channels, transposed, pointer(packed), call.stream()),
          "pack_weights");
  const int64_t width = padded_channels(out_dtype, static_cast<int32_t>(columns));
  const Tensor output = call.empty({table.size(1), width}, out_type);
  const Tensor count = call.number(small(table.size(1), "output rows"));
  task.features = pointer(rows);
  task.in_channels = static_cast<int32_t>(depth);
  task.out_channels = static_cast<int32_t>(columns);
  task.weight = pointer(packed);
  task.table = ints(table);
  task.volume = static_cast<int32_t>(volume);
  task.out_count = ints(count);
  task.capacity = table.size(1);
  task.output = Features{pointer(output), out_dtype};
  if (task.capacity > 0 && columns > 0) require(convolve(task, call.stream()), "convolve");
  return unpadded(output, columns);
}

Tensor convolution(const Tensor& features_in, const Tensor& weight_in, const Tensor& table_in,
                   const std::optional<Tensor>& bias_in, bool transposed) {
  const ConvolutionArguments in(features_in, weight_in, table_in, transposed);
  const Call call(in.features);
  ConvolutionTask task;
  task.type = half_or_float(in.features, "features");
  std::optional<Tensor> bias;
  if (bias_in) {
    bias = torch::stable::to(torch::stable::contiguous(*bias_in), ScalarType::Float);
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == in.columns, "expected a bias of ",
                    in.columns, " values");
    task.bias = static_cast<const float*>(pointer(*bias));
  }
  return convolve_with(call, task, in.features, in.weight, in.table, transposed, in.columns,
                       in.features.scalar_type(), task.type);
}

Tensor convolution_int8(const Tensor& features_in, const Tensor& weight_in,
                        const Tensor& scale_in, const Tensor& table_in,
                        const std::optional<Tensor>& bias_in) {
  const Int8Arguments in(features_in, weight_in, scale_in, table_in, bias_in);
  const Call call(in.features);
  ConvolutionTask task;
  task.type = DType::i8;
  task.scale = static_cast<const float*>(pointer(in.scale));
  task.bias = in.bias ? static_cast<const float*>(pointer(*in.bias)) : nullptr;
  return convolve_with(call, task, in.features, in.weight, in.table, false, in.weight.size(0),
                       ScalarType::Float, DType::f32);
}

Tensor weight_gradient_of(const Tensor& features_in, const Tensor& grad_in,
                          const Tensor& table_in) {
  const GradientArguments in(features_in, grad_in, table_in);
  const Call call(in.features);
  const int64_t depth = in.features.size(1), columns = in.grad.size(1);
  WeightGradientTask task;
  task.type = half_or_float(in.features, "features");
  task.in_channels = small(depth, "channels");
  task.out_channels = small(columns, "channels");
  task.volume = small(in.table.size(0), "kernel offsets");
  task.capacity = in.table.size(1);
  if (task.capacity == 0 || in.features.size(0) == 0) {
    return torch::stable::new_zeros(in.features, {columns, task.volume, depth}, ScalarType::Float);
  }
  const Tensor features = padded(in.features, task.type), grad = padded(in.grad, task.type);
  Tensor result = call.empty({columns, task.volume, depth}, ScalarType::Float);
  const Tensor scratch = call.bytes(
      weight_gradient_bytes(task.volume, task.in_channels, task.out_channels, task.capacity));
  const Tensor count = call.number(task.capacity);
  task.features = pointer(features);
  task.grad = pointer(grad);
  task.table = ints(in.table);
  task.out_count = ints(count);
  task.gradient = static_cast<float*>(pointer(result));
  task.scratch = pointer(scratch);
  require(weight_gradient(task, call.stream()), "weight_gradient");
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s4d, CUDA, m) {
  m.impl("sparse_convolution", TORCH_BOX(&convolution));
  m.impl("sparse_convolution_int8", TORCH_BOX(&convolution_int8));
  m.impl("sparse_weight_gradient", TORCH_BOX(&weight_gradient_of));
}
