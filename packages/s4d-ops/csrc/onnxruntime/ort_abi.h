// The part of ONNX Runtime's C interface that a custom-op library needs, declared by us, because
// no Python package carries the headers. The interface is a table of function pointers that only
// ever grows at its end, so a position, once released, keeps its meaning. Positions and layouts
// are facts of onnxruntime_c_api.h; tests/native/check_ort_abi.cpp compares every one of them with
// a real header.
#pragma once

#include <cstddef>
#include <cstdint>

// Opaque types, named as in the runtime.
struct OrtStatus;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtApi;

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

namespace s4d_ort {

// The oldest interface that has every position used below: ONNX Runtime 1.17.
constexpr uint32_t kApiVersion = 17;
// Layout version of CustomOp below: up to KernelComputeV2, which came with ONNX Runtime 1.16.
constexpr uint32_t kCustomOpVersion = 16;

enum ElementType : int32_t {
  kUndefined = 0,
  kFloat = 1,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kDouble = 11,
  kBFloat16 = 16,
};
enum ErrorCode : int32_t { kFail = 1, kInvalidArgument = 2 };
enum MemoryType : int32_t { kCpuInput = -2, kDefaultMemory = 0 };
constexpr int32_t kRequired = 0;  // input or output characteristic

// Positions in OrtApi.
enum Slot : std::size_t {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomain_Add = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttribute_float = 85,
  kKernelInfoGetAttribute_int64 = 86,
  kKernelInfoGetAttribute_string = 87,
  kKernelContext_GetInput = 90,
  kKernelContext_GetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShapeInfo = 99,
  kKernelContext_GetGPUComputeStream = 193,
  kKernelContext_ParallelFor = 274,
};

// OrtCustomOp, version 16.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, std::size_t);
  std::size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, std::size_t);
  std::size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int32_t (*GetInputCharacteristic)(const CustomOp*, std::size_t);
  int32_t (*GetOutputCharacteristic)(const CustomOp*, std::size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, std::size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus* (*CreateKernelV2)(const CustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
};

// Typed calls through the table. A non-null status is an error that the caller must release or
// hand on.
class Api {
 public:
  explicit Api(const OrtApi* table) : table_(reinterpret_cast<void* const*>(table)) {}

  OrtStatus* create_status(ErrorCode code, const char* message) const {
    return at<OrtStatus*(ErrorCode, const char*)>(kCreateStatus)(code, message);
  }
  void release(OrtStatus* status) const { at<void(OrtStatus*)>(kReleaseStatus)(status); }
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** out) const {
    return at<OrtStatus*(const char*, OrtCustomOpDomain**)>(kCreateCustomOpDomain)(name, out);
  }
  OrtStatus* add_op(OrtCustomOpDomain* domain, const CustomOp* op) const {
    return at<OrtStatus*(OrtCustomOpDomain*, const CustomOp*)>(kCustomOpDomain_Add)(domain, op);
  }
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return at<OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>(kAddCustomOpDomain)(options,
                                                                                    domain);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, float* out) const {
    return at<OrtStatus*(const OrtKernelInfo*, const char*, float*)>(
        kKernelInfoGetAttribute_float)(info, name, out);
  }
  // `size` counts the final zero; with a null `out` it is set to what is needed.
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, char* out,
                       std::size_t* size) const {
    return at<OrtStatus*(const OrtKernelInfo*, const char*, char*, std::size_t*)>(
        kKernelInfoGetAttribute_string)(info, name, out, size);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int64_t* out) const {
    return at<OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>(
        kKernelInfoGetAttribute_int64)(info, name, out);
  }
  OrtStatus* input(const OrtKernelContext* context, std::size_t i, const OrtValue** out) const {
    return at<OrtStatus*(const OrtKernelContext*, std::size_t, const OrtValue**)>(
        kKernelContext_GetInput)(context, i, out);
  }
  OrtStatus* output(OrtKernelContext* context, std::size_t i, const int64_t* sizes,
                    std::size_t rank, OrtValue** out) const {
    return at<OrtStatus*(OrtKernelContext*, std::size_t, const int64_t*, std::size_t,
                         OrtValue**)>(kKernelContext_GetOutput)(context, i, sizes, rank, out);
  }
  OrtStatus* data(const OrtValue* value, void** out) const {
    // Declared for mutable values; it only reads the value.
    return at<OrtStatus*(OrtValue*, void**)>(kGetTensorMutableData)(const_cast<OrtValue*>(value),
                                                                   out);
  }
  OrtStatus* type_and_shape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const {
    return at<OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>(kGetTensorTypeAndShape)(
        value, out);
  }
  OrtStatus* element_type(const OrtTensorTypeAndShapeInfo* info, ElementType* out) const {
    return at<OrtStatus*(const OrtTensorTypeAndShapeInfo*, ElementType*)>(kGetTensorElementType)(
        info, out);
  }
  OrtStatus* rank(const OrtTensorTypeAndShapeInfo* info, std::size_t* out) const {
    return at<OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t*)>(kGetDimensionsCount)(
        info, out);
  }
  OrtStatus* sizes(const OrtTensorTypeAndShapeInfo* info, int64_t* out, std::size_t rank) const {
    return at<OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, std::size_t)>(
        kGetDimensions)(info, out, rank);
  }
  void release(OrtTensorTypeAndShapeInfo* info) const {
    at<void(OrtTensorTypeAndShapeInfo*)>(kReleaseTensorTypeAndShapeInfo)(info);
  }
  OrtStatus* gpu_stream(const OrtKernelContext* context, void** out) const {
    return at<OrtStatus*(const OrtKernelContext*, void**)>(kKernelContext_GetGPUComputeStream)(
        context, out);
  }
  // Calls fn(data, i) for i in [0, total) on the session's threads.
  OrtStatus* parallel_for(const OrtKernelContext* context, void (*fn)(void*, std::size_t),
                          std::size_t total, void* data) const {
    return at<OrtStatus*(const OrtKernelContext*, void (*)(void*, std::size_t), std::size_t,
                         std::size_t, void*)>(kKernelContext_ParallelFor)(context, fn, total,
                                                                         total, data);
  }

 private:
  template <class Function>
  Function* at(Slot slot) const {
    return reinterpret_cast<Function*>(table_[slot]);
  }

  void* const* table_;
};

}  // namespace s4d_ort
