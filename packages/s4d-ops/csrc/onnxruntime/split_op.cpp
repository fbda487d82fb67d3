#include "split_op.h"

#include <array>
#include <string>

#include "core/split_convolution.h"
#include "kernel_support.h"

namespace s4d_ort {
namespace {

enum class Kind { convolution, sum, pool, linear, values };

struct SplitOp : CustomOp {
  Kind kind;
};

const SplitOp& self(const CustomOp* op) { return *static_cast<const SplitOp*>(op); }

using Sizes = std::array<int64_t, 4>;

struct Kernel {
  Api api;
  Kind kind;
  std::array<int, 2> window{1, 1}, stride{1, 1}, pad{0, 0};
  bool relu = false, split_output = false, split_residual = false;

  [[noreturn]] void refuse(const std::string& message) const {
    throw Failed{api.create_status(kInvalidArgument, ("split operator: " + message).c_str())};
  }

  TensorInput read(const OrtKernelContext* context, std::size_t i) const {
    return read_input(api, context, i, "split operator: an input is missing");
  }

  Sizes four(const TensorInput& input, const char* what) const {
    if (input.sizes.size() != 4) refuse(std::string("expected four dimensions of the ") + what);
    Sizes sizes{};
    for (std::size_t i = 0; i < 4; ++i) {
      sizes[i] = input.sizes[i];
      if (sizes[i] < 1 || sizes[i] > INT32_MAX) {
        refuse(std::string("a size of the ") + what + " is not usable");
      }
    }
    return sizes;
  }

  void* make_output(OrtKernelContext* context, const Sizes& sizes) const {
    OrtValue* output = nullptr;
    check(api.output(context, 0, sizes.data(), 4, &output));
    void* data = nullptr;
    check(api.data(output, &data));
    return data;
  }

  Sizes slid(const Sizes& input, int64_t channels) const {
    Sizes out{input[0], 0, 0, channels};
    for (std::size_t axis = 0; axis < 2; ++axis) {
      const int64_t room = input[1 + axis] + 2 * pad[axis] - window[axis];
      if (room < 0) refuse("the window is larger than the padded input");
      out[1 + axis] = room / stride[axis] + 1;
    }
    return out;
  }

  std::string convolve(OrtKernelContext* context, void* stream) const {
    const TensorInput input = read(context, 0), weight = read(context, 1);
    const TensorInput finish = read(context, 2);
    s4d::SplitConvolution args;
    args.input_size = four(input, "input");
    const int64_t depth = int64_t{window[0]} * window[1] * args.input_size[3];
    const int64_t row = (depth + s4d::kSplitDepth - 1) / s4d::kSplitDepth * s4d::kSplitDepth;
    if (weight.sizes.size() != 2 || weight.sizes[1] != row) {
      refuse("expected weights of " + std::to_string(row) + " steps for this window and input");
    }
    const int64_t channels = weight.sizes[0];
    if (finish.sizes != std::vector<int64_t>{2, channels}) {
      refuse("expected bias and scale for each output channel");
    }
    args.output_size = slid(args.input_size, channels);
    args.kernel = window;
    args.stride = stride;
    args.pad = pad;
    args.relu = relu;
    args.split_output = split_output;
    args.input = input.data;
    args.weight = weight.data;
    args.finish = static_cast<const float*>(finish.data);
    if (kind == Kind::sum) {
      const TensorInput residual = read(context, 3);
      if (four(residual, "residual") != args.output_size) refuse("the residual has another shape");
      args.residual = residual.data;
      args.residual_kind =
          split_residual ? s4d::SplitResidual::split : s4d::SplitResidual::single;
    }
    args.output = make_output(context, args.output_size);
    args.stream = stream;
    return s4d::split_convolution_cuda(args);
  }

  std::string transform(OrtKernelContext* context, void* stream) const {
    TensorInput input = read(context, 0);
    const TensorInput weight = read(context, 1), finish = read(context, 2);
    const int64_t channels = input.sizes.empty() ? 0 : input.sizes.back();
    const int64_t row = (channels + s4d::kSplitDepth - 1) / s4d::kSplitDepth * s4d::kSplitDepth;
    if (channels < 1 || weight.sizes.size() != 2 || weight.sizes[1] != row) {
      refuse("expected weights of " + std::to_string(row) + " steps for this input");
    }
    if (finish.sizes != std::vector<int64_t>{2, weight.sizes[0]}) {
      refuse("expected bias and scale for each output channel");
    }
    int64_t rows = 1;
    for (std::size_t i = 0; i + 1 < input.sizes.size(); ++i) rows *= input.sizes[i];
    input.sizes.back() = weight.sizes[0];
    OrtValue* output = nullptr;
    check(api.output(context, 0, input.sizes.data(), input.sizes.size(), &output));
    s4d::SplitConvolution args;
    check(api.data(output, &args.output));
    args.input_size = {1, rows, 1, channels};
    args.output_size = {1, rows, 1, weight.sizes[0]};
    args.relu = relu;
    args.plain_input = true;
    args.input = input.data;
    args.weight = weight.data;
    args.finish = static_cast<const float*>(finish.data);
    args.stream = stream;
    return s4d::split_convolution_cuda(args);
  }

  std::string pool(OrtKernelContext* context, void* stream) const {
    const TensorInput input = read(context, 0);
    s4d::SplitPool args;
    args.input_size = four(input, "input");
    args.output_size = slid(args.input_size, args.input_size[3]);
    args.kernel = window;
    args.stride = stride;
    args.pad = pad;
    args.split_output = split_output;
    args.input = input.data;
    args.output = make_output(context, args.output_size);
    args.stream = stream;
    return s4d::split_pool_cuda(args);
  }

  std::string split(OrtKernelContext* context, void* stream) const {
    const TensorInput input = read(context, 0);
    Sizes sizes = four(input, "input");
    const int64_t rows = sizes[0] * sizes[1] * sizes[2];
    const int channels = static_cast<int>(sizes[3]);
    sizes[3] = (sizes[3] + s4d::kSplitGroup - 1) / s4d::kSplitGroup * s4d::kSplitGroup;
    return s4d::split_values_cuda(static_cast<const float*>(input.data), rows, channels,
                                  make_output(context, sizes), stream);
  }

  void compute(OrtKernelContext* context) const {
    void* stream = nullptr;
    check(api.gpu_stream(context, &stream));
    const std::string problem = kind == Kind::values   ? split(context, stream)
                                : kind == Kind::linear ? transform(context, stream)
                                : kind == Kind::pool   ? pool(context, stream)
                                                       : convolve(context, stream);
    if (!problem.empty()) throw Failed{api.create_status(kFail, problem.c_str())};
  }
};

OrtStatus* create_kernel(const CustomOp* op, const OrtApi* table, const OrtKernelInfo* info,
                         void** out) {
  const Api api(table);
  return guarded(api, [&] {
    const auto attribute = [&](const char* name, int64_t least) {
      int64_t value = 0;
      check(api.attribute(info, name, &value));
      if (value < least || value > 64) {
        const std::string message = std::string("split operator: ") + name + " is not usable";
        throw Failed{api.create_status(kInvalidArgument, message.c_str())};
      }
      return static_cast<int>(value);
    };
    Kernel kernel{api, self(op).kind};
    if (kernel.kind != Kind::values && kernel.kind != Kind::linear) {
      kernel.window = {attribute("kernel_h", 1), attribute("kernel_w", 1)};
      kernel.stride = {attribute("stride_h", 1), attribute("stride_w", 1)};
      kernel.pad = {attribute("pad_h", 0), attribute("pad_w", 0)};
      kernel.split_output = attribute("split", 0) != 0;
    }
    if (kernel.kind != Kind::values && kernel.kind != Kind::pool) {
      kernel.relu = attribute("relu", 0) != 0;
    }
    if (kernel.kind == Kind::sum) kernel.split_residual = attribute("split_residual", 0) != 0;
    *out = new Kernel(kernel);
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Kernel& k = *static_cast<Kernel*>(kernel);
  return guarded(k.api, [&] { k.compute(context); });
}

SplitOp make_op(Kind kind) {
  SplitOp op{cuda_op(), kind};
  op.GetName = [](const CustomOp* o) {
    constexpr const char* names[] = {"SplitConvolution", "SplitConvolutionAdd", "SplitMaxPool",
                                     "SplitLinear", "SplitValues"};
    return names[static_cast<int>(self(o).kind)];
  };
  op.GetInputType = [](const CustomOp*, std::size_t) { return kFloat; };
  op.GetInputTypeCount = [](const CustomOp* o) -> std::size_t {
    constexpr std::size_t counts[] = {3, 4, 1, 3, 1};
    return counts[static_cast<int>(self(o).kind)];
  };
  op.GetOutputType = [](const CustomOp*, std::size_t) { return kFloat; };
  op.CreateKernelV2 = &create_kernel;
  op.KernelComputeV2 = &compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace

std::vector<const CustomOp*> split_ops() {
  static const SplitOp ops[] = {make_op(Kind::convolution), make_op(Kind::sum),
                                make_op(Kind::pool), make_op(Kind::linear),
                                make_op(Kind::values)};
  return {&ops[0], &ops[1], &ops[2], &ops[3], &ops[4]};
}

}  // namespace s4d_ort
