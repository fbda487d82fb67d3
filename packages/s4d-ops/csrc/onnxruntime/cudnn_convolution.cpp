#include "cudnn_convolution.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <vector>

namespace s4d_ort {
namespace {

// The part of cuDNN 9's C interface that is used, declared here because no header may be at hand
// where this is built. Values are those of cudnn_ops.h and cudnn_cnn.h.
using Handle = void*;
using Descriptor = void*;
constexpr int kHalf = 2;                // CUDNN_DATA_HALF
constexpr int kFloat = 0;               // CUDNN_DATA_FLOAT
constexpr int kChannelsLast = 1;        // CUDNN_TENSOR_NHWC
constexpr int kCrossCorrelation = 1;    // CUDNN_CROSS_CORRELATION
constexpr int kTensorOps = 1;           // CUDNN_TENSOR_OP_MATH
constexpr int kImplicitPrecompGemm = 1; // CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM
constexpr int kRelu = 1;                // CUDNN_ACTIVATION_RELU
constexpr int kIdentity = 5;            // CUDNN_ACTIVATION_IDENTITY

struct Cudnn {
  const char* (*error_string)(int);
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*set_stream)(Handle, void*);
  int (*create_tensor)(Descriptor*);
  int (*set_tensor)(Descriptor, int, int, int, int, int, int);
  int (*destroy_tensor)(Descriptor);
  int (*create_filter)(Descriptor*);
  int (*set_filter)(Descriptor, int, int, int, int, int, int);
  int (*destroy_filter)(Descriptor);
  int (*create_convolution)(Descriptor*);
  int (*set_convolution)(Descriptor, int, int, int, int, int, int, int, int);
  int (*set_math)(Descriptor, int);
  int (*destroy_convolution)(Descriptor);
  int (*create_activation)(Descriptor*);
  int (*set_activation)(Descriptor, int, int, double);
  int (*destroy_activation)(Descriptor);
  int (*workspace_size)(Handle, Descriptor, Descriptor, Descriptor, Descriptor, int, std::size_t*);
  int (*forward)(Handle, const void*, Descriptor, const void*, Descriptor, const void*, Descriptor,
                 int, void*, std::size_t, const void*, Descriptor, const void*, Descriptor,
                 const void*, Descriptor, Descriptor, void*);
  std::string problem;
};

const Cudnn& cudnn() {
  static const Cudnn loaded = [] {
    Cudnn c{};
    void* library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      c.problem = "cuDNN 9 is not there (libcudnn.so.9)";
      return c;
    }
    const auto find = [&](auto& function, const char* name) {
      void* address = dlsym(library, name);
      if (!address) c.problem = std::string("this cuDNN has no ") + name;
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
    };
    find(c.error_string, "cudnnGetErrorString");
    find(c.create, "cudnnCreate");
    find(c.destroy, "cudnnDestroy");
    find(c.set_stream, "cudnnSetStream");
    find(c.create_tensor, "cudnnCreateTensorDescriptor");
    find(c.set_tensor, "cudnnSetTensor4dDescriptor");
    find(c.destroy_tensor, "cudnnDestroyTensorDescriptor");
    find(c.create_filter, "cudnnCreateFilterDescriptor");
    find(c.set_filter, "cudnnSetFilter4dDescriptor");
    find(c.destroy_filter, "cudnnDestroyFilterDescriptor");
    find(c.create_convolution, "cudnnCreateConvolutionDescriptor");
    find(c.set_convolution, "cudnnSetConvolution2dDescriptor");
    find(c.set_math, "cudnnSetConvolutionMathType");
    find(c.destroy_convolution, "cudnnDestroyConvolutionDescriptor");
    find(c.create_activation, "cudnnCreateActivationDescriptor");
    find(c.set_activation, "cudnnSetActivationDescriptor");
    find(c.destroy_activation, "cudnnDestroyActivationDescriptor");
    find(c.workspace_size, "cudnnGetConvolutionForwardWorkspaceSize");
    find(c.forward, "cudnnConvolutionBiasActivationForward");
    return c;
  }();
  return loaded;
}

struct Problem {
  std::string text;
};

void check(int status) {
  if (status != 0) throw Problem{std::string("cuDNN: ") + cudnn().error_string(status)};
}

// What the convolutions on one stream share: they run one after the other.
struct Lane {
  Handle handle = nullptr;
  void* workspace = nullptr;
  std::size_t size = 0;
  std::vector<void*> outgrown;  // a captured graph may still refer to them

  explicit Lane(void* stream) {
    check(cudnn().create(&handle));
    check(cudnn().set_stream(handle, stream));
  }
  ~Lane() {
    if (handle) cudnn().destroy(handle);
    for (void* memory : outgrown) cudaFree(memory);
    if (workspace) cudaFree(workspace);
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void reserve(std::size_t bytes) {
    if (bytes <= size) return;
    void* fresh = nullptr;
    const cudaError_t error = cudaMalloc(&fresh, bytes);
    if (error != cudaSuccess) {
      cudaGetLastError();  // it is reported here
      throw Problem{std::string("CUDA failure 2: out of memory; failed to allocate ") +
                    std::to_string(bytes) + " bytes for a convolution"};
    }
    if (workspace) outgrown.push_back(workspace);
    workspace = fresh;
    size = bytes;
  }
};

std::shared_ptr<Lane> lane_of(void* stream) {
  static std::mutex mutex;
  static auto* const lanes = new std::map<void*, std::weak_ptr<Lane>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Lane> lane = (*lanes)[stream].lock();
  if (!lane) {
    lane = std::make_shared<Lane>(stream);
    (*lanes)[stream] = lane;
  }
  return lane;
}

int narrow(int64_t size) { return static_cast<int>(size); }

}  // namespace

struct CudnnConvolution::State {
  Descriptor input = nullptr, weight = nullptr, output = nullptr, bias = nullptr;
  Descriptor convolution = nullptr, activation = nullptr;
  std::array<int64_t, 4> described{};
  std::size_t workspace = 0;
  void* stream = nullptr;
  std::shared_ptr<Lane> lane;

  ~State() {
    const Cudnn& c = cudnn();
    for (Descriptor d : {input, output, bias}) {
      if (d) c.destroy_tensor(d);
    }
    if (weight) c.destroy_filter(weight);
    if (convolution) c.destroy_convolution(convolution);
    if (activation) c.destroy_activation(activation);
  }

  void describe(const ConvolutionShape& shape) {
    const Cudnn& c = cudnn();
    const auto tensor = [&](Descriptor& d, const std::array<int64_t, 4>& s) {
      if (!d) check(c.create_tensor(&d));
      check(c.set_tensor(d, kChannelsLast, kHalf, narrow(s[0]), narrow(s[3]), narrow(s[1]),
                         narrow(s[2])));
    };
    tensor(input, shape.input);
    tensor(output, shape.output);
    tensor(bias, {1, 1, 1, shape.output[3]});
    const auto& w = shape.weight;
    if (!weight) check(c.create_filter(&weight));
    check(c.set_filter(weight, kHalf, kChannelsLast, narrow(w[0]), narrow(w[3]), narrow(w[1]),
                       narrow(w[2])));
    if (!convolution) check(c.create_convolution(&convolution));
    check(c.set_convolution(convolution, shape.pad[0], shape.pad[1], shape.stride[0],
                            shape.stride[1], 1, 1, kCrossCorrelation, kFloat));
    check(c.set_math(convolution, kTensorOps));
    if (!activation) check(c.create_activation(&activation));
    check(c.set_activation(activation, shape.relu ? kRelu : kIdentity, 0, 0.0));
    check(c.workspace_size(lane->handle, input, weight, convolution, output, kImplicitPrecompGemm,
                           &workspace));
    described = shape.input;
  }
};

CudnnConvolution::CudnnConvolution() : state_(new State) {}
CudnnConvolution::~CudnnConvolution() = default;

std::string CudnnConvolution::run(const ConvolutionShape& shape, const ConvolutionData& data) {
  const Cudnn& c = cudnn();
  if (!c.problem.empty()) return c.problem;
  try {
    State& s = *state_;
    if (!s.lane || s.stream != data.stream) {
      s.lane = lane_of(data.stream);
      s.stream = data.stream;
    }
    if (s.described != shape.input) s.describe(shape);
    s.lane->reserve(s.workspace);
    const float one = 1.0f, none = 0.0f;
    check(c.forward(s.lane->handle, &one, s.input, data.input, s.weight, data.weight,
                    s.convolution, kImplicitPrecompGemm, s.lane->workspace, s.workspace,
                    shape.residual ? &one : &none, s.output,
                    shape.residual ? data.residual : data.output, s.bias, data.bias, s.activation,
                    s.output, data.output));
    return {};
  } catch (const Problem& problem) {
    return problem.text;
  }
}

}  // namespace s4d_ort
