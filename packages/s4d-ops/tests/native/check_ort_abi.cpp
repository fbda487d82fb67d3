// Compiles only if ort_abi.h says the same as a real onnxruntime_c_api.h.
#include <onnxruntime_c_api.h>

#include <cstddef>

// The declarations under test use the same names for the opaque types, but OrtApiBase and OrtApi
// are complete in the real header: rename ours.
#define OrtApiBase S4dOrtApiBase
#define OrtApi S4dOrtApi
#include "ort_abi.h"
#undef OrtApiBase
#undef OrtApi

#define SAME_SLOT(name) \
  static_assert(offsetof(OrtApi, name) == sizeof(void*) * s4d_ort::k##name, #name)
SAME_SLOT(CreateStatus);
SAME_SLOT(CreateCustomOpDomain);
SAME_SLOT(CustomOpDomain_Add);
SAME_SLOT(AddCustomOpDomain);
SAME_SLOT(GetTensorMutableData);
SAME_SLOT(GetTensorElementType);
SAME_SLOT(GetDimensionsCount);
SAME_SLOT(GetDimensions);
SAME_SLOT(GetTensorTypeAndShape);
SAME_SLOT(KernelInfoGetAttribute_float);
SAME_SLOT(KernelInfoGetAttribute_int64);
SAME_SLOT(KernelInfoGetAttribute_string);
SAME_SLOT(KernelContext_GetInput);
SAME_SLOT(KernelContext_GetOutput);
SAME_SLOT(ReleaseStatus);
SAME_SLOT(ReleaseTensorTypeAndShapeInfo);
SAME_SLOT(KernelContext_GetGPUComputeStream);
SAME_SLOT(KernelContext_ParallelFor);

#define SAME_FIELD(name) \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(s4d_ort::CustomOp, name), #name)
SAME_FIELD(version);
SAME_FIELD(CreateKernel);
SAME_FIELD(GetName);
SAME_FIELD(GetExecutionProviderType);
SAME_FIELD(GetInputType);
SAME_FIELD(GetInputTypeCount);
SAME_FIELD(GetOutputType);
SAME_FIELD(GetOutputTypeCount);
SAME_FIELD(KernelCompute);
SAME_FIELD(KernelDestroy);
SAME_FIELD(GetInputCharacteristic);
SAME_FIELD(GetOutputCharacteristic);
SAME_FIELD(GetInputMemoryType);
SAME_FIELD(GetVariadicInputMinArity);
SAME_FIELD(GetVariadicInputHomogeneity);
SAME_FIELD(GetVariadicOutputMinArity);
SAME_FIELD(GetVariadicOutputHomogeneity);
SAME_FIELD(CreateKernelV2);
SAME_FIELD(KernelComputeV2);

static_assert(offsetof(OrtApiBase, GetApi) == offsetof(S4dOrtApiBase, GetApi), "GetApi");
static_assert(s4d_ort::kApiVersion <= ORT_API_VERSION, "header older than what we ask for");
static_assert(s4d_ort::kFloat == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT), "float");
static_assert(s4d_ort::kInt8 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8), "int8");
static_assert(s4d_ort::kInt32 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32), "int32");
static_assert(s4d_ort::kInt64 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64), "int64");
static_assert(s4d_ort::kFloat16 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16), "f16");
static_assert(s4d_ort::kDouble == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE), "f64");
static_assert(s4d_ort::kBFloat16 == static_cast<int>(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16),
              "bf16");
static_assert(s4d_ort::kFail == static_cast<int>(ORT_FAIL), "error code");
static_assert(s4d_ort::kInvalidArgument == static_cast<int>(ORT_INVALID_ARGUMENT), "error code");
static_assert(s4d_ort::kCpuInput == static_cast<int>(OrtMemTypeCPUInput), "memory type");
static_assert(s4d_ort::kDefaultMemory == static_cast<int>(OrtMemTypeDefault), "memory type");
static_assert(s4d_ort::kRequired == static_cast<int>(INPUT_OUTPUT_REQUIRED), "characteristic");
