#include "convolution_op.h"

#include <array>
#include <string>

#include "cudnn_convolution.h"
#include "kernel_support.h"

namespace s4d_ort {
namespace {

struct ConvolutionOp : CustomOp {
  bool residual;
};

const ConvolutionOp& self(const CustomOp* op) { return *static_cast<const ConvolutionOp*>(op); }

struct Kernel {
  Api api;
  ConvolutionShape shape;
  CudnnConvolution convolution;

  [[noreturn]] void refuse(const std::string& message) const {
    throw Failed{api.create_status(kInvalidArgument, ("Convolution: " + message).c_str())};
  }

  std::array<int64_t, 4> four(const TensorInput& input, const char* what) const {
    if (input.sizes.size() != 4) refuse(std::string("expected four dimensions of the ") + what);
    std::array<int64_t, 4> sizes{};
    for (std::size_t i = 0; i < 4; ++i) {
      sizes[i] = input.sizes[i];
      if (sizes[i] < 1 || sizes[i] > INT32_MAX) {
        refuse(std::string("a size of the ") + what + " is not usable");
      }
    }
    return sizes;
  }

  void compute(OrtKernelContext* context) {
    const auto read = [&](std::size_t i) {
      return read_input(api, context, i, "Convolution: an input is missing");
    };
    const TensorInput input = read(0), weight = read(1), bias = read(2);
    shape.input = four(input, "input");
    shape.weight = four(weight, "weight");
    if (shape.input[3] != shape.weight[3]) refuse("input and weight differ in channels");
    if (bias.sizes.size() != 1 || bias.sizes[0] != shape.weight[0]) {
      refuse("expected one bias per output channel");
    }
    shape.output = {shape.input[0], 0, 0, shape.weight[0]};
    for (int axis = 0; axis < 2; ++axis) {
      const int64_t room = shape.input[1 + axis] + 2 * shape.pad[axis] - shape.weight[1 + axis];
      if (room < 0) refuse("the kernel is larger than the padded input");
      shape.output[1 + axis] = room / shape.stride[axis] + 1;
    }
    ConvolutionData data;
    data.input = input.data;
    data.weight = weight.data;
    data.bias = bias.data;
    if (shape.residual) {
      const TensorInput residual = read(3);
      if (four(residual, "residual") != shape.output) refuse("the residual has another shape");
      data.residual = residual.data;
    }
    OrtValue* output = nullptr;
    check(api.output(context, 0, shape.output.data(), 4, &output));
    check(api.data(output, &data.output));
    check(api.gpu_stream(context, &data.stream));
    const std::string problem = convolution.run(shape, data);
    if (!problem.empty()) throw Failed{api.create_status(kFail, problem.c_str())};
  }
};

int attribute(const Api& api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api.attribute(info, name, &value));
  if (value < 0 || value > 64) {
    throw Failed{api.create_status(kInvalidArgument, "Convolution: an attribute is not usable")};
  }
  return static_cast<int>(value);
}

OrtStatus* create_kernel(const CustomOp* op, const OrtApi* table, const OrtKernelInfo* info,
                         void** out) {
  const Api api(table);
  return guarded(api, [&] {
    ConvolutionShape shape;
    shape.stride = {attribute(api, info, "stride_h"), attribute(api, info, "stride_w")};
    shape.pad = {attribute(api, info, "pad_h"), attribute(api, info, "pad_w")};
    if (shape.stride[0] == 0 || shape.stride[1] == 0) {
      throw Failed{api.create_status(kInvalidArgument, "Convolution: a stride is 0")};
    }
    shape.relu = attribute(api, info, "relu") != 0;
    shape.residual = self(op).residual;
    *out = new Kernel{api, shape, {}};
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  Kernel& k = *static_cast<Kernel*>(kernel);
  return guarded(k.api, [&] { k.compute(context); });
}

ConvolutionOp make_op(bool residual) {
  ConvolutionOp op{cuda_op(), residual};
  op.GetName = [](const CustomOp* o) {
    return self(o).residual ? "ConvolutionAdd" : "Convolution";
  };
  op.GetInputType = [](const CustomOp*, std::size_t) { return kFloat16; };
  op.GetInputTypeCount = [](const CustomOp* o) -> std::size_t { return self(o).residual ? 4 : 3; };
  op.GetOutputType = [](const CustomOp*, std::size_t) { return kFloat16; };
  op.CreateKernelV2 = &create_kernel;
  op.KernelComputeV2 = &compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace

const CustomOp* convolution_op(bool residual) {
  static const ConvolutionOp plain = make_op(false), sum = make_op(true);
  return residual ? &sum : &plain;
}

}  // namespace s4d_ort
