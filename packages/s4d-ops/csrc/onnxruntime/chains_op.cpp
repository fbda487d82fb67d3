#include "chains_op.h"

#include <string>

#include "core/dense_chains.h"
#include "kernel_support.h"

namespace s4d_ort {
namespace {

struct Kernel {
  Api api;
  s4d::DenseChains chains;
  int64_t parameters = 0;
  std::size_t rank = 0;

  [[noreturn]] void refuse(const std::string& message) const {
    throw Failed{api.create_status(kInvalidArgument, ("DenseChains: " + message).c_str())};
  }

  void compute(OrtKernelContext* context) {
    TensorInput input = read_input(api, context, 0, "DenseChains: an input is missing");
    const TensorInput values = read_input(api, context, 1, "DenseChains: an input is missing");
    if (values.sizes.size() != 1 || values.sizes[0] != parameters) {
      refuse("expected " + std::to_string(parameters) + " parameters");
    }
    if (input.sizes.empty() || (rank != 0 && input.sizes.size() != rank)) {
      refuse("the input has another number of dimensions");
    }
    if (input.sizes.back() < 1 || input.sizes.back() > INT32_MAX) refuse("the rows are not usable");
    chains.input_width = static_cast<int32_t>(input.sizes.back());
    chains.rows = 1;
    for (std::size_t i = 0; i + 1 < input.sizes.size(); ++i) chains.rows *= input.sizes[i];
    input.sizes.back() = chains.output_width;
    OrtValue* output = nullptr;
    check(api.output(context, 0, input.sizes.data(), input.sizes.size(), &output));
    void* target = nullptr;
    check(api.data(output, &target));
    chains.input = static_cast<const float*>(input.data);
    chains.parameters = static_cast<const float*>(values.data);
    chains.output = static_cast<float*>(target);
    check(api.gpu_stream(context, &chains.stream));
    const std::string problem = s4d::dense_chains_cuda(chains);
    if (!problem.empty()) throw Failed{api.create_status(kFail, problem.c_str())};
  }
};

OrtStatus* create_kernel(const CustomOp*, const OrtApi* table, const OrtKernelInfo* info,
                         void** out) {
  const Api api(table);
  return guarded(api, [&] {
    std::size_t size = 0;
    check(api.attribute(info, "branches", nullptr, &size));  // how long it is
    std::string text(size, '\0');
    check(api.attribute(info, "branches", text.data(), &size));
    text.resize(text.find('\0') == std::string::npos ? size : text.find('\0'));
    Kernel kernel{api, {}, 0, 0};
    kernel.parameters = s4d::parse_dense_chains(text, &kernel.chains);
    if (kernel.parameters < 0) kernel.refuse("the description '" + text + "' is not sound");
    int64_t rank = 0;
    check(api.attribute(info, "rank", &rank));
    check(api.attribute(info, "epsilon", &kernel.chains.epsilon));
    kernel.rank = static_cast<std::size_t>(rank);
    *out = new Kernel(kernel);
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  Kernel& k = *static_cast<Kernel*>(kernel);
  return guarded(k.api, [&] { k.compute(context); });
}

}  // namespace

const CustomOp* dense_chains_op() {
  static const CustomOp made = [] {
    CustomOp op = cuda_op();
    op.GetName = [](const CustomOp*) { return "DenseChains"; };
    op.GetInputType = [](const CustomOp*, std::size_t) { return kFloat; };
    op.GetInputTypeCount = [](const CustomOp*) -> std::size_t { return 2; };
    op.GetOutputType = [](const CustomOp*, std::size_t) { return kFloat; };
    op.CreateKernelV2 = &create_kernel;
    op.KernelComputeV2 = &compute;
    op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return op;
  }();
  return &made;
}

}  // namespace s4d_ort
