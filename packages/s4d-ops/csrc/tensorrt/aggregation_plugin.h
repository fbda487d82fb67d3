// Deformable aggregation as a TensorRT plugin (IPluginV3), for TensorRT 10 and 11.
//
// Inputs, all linear: features (FP32, FP16, BF16 or INT8), spatial_shapes and level_start_index
// (both INT32 or both INT64), sampling_locations and weights (FP32, FP16 or BF16 each). Output:
// the type of the features; for INT8 features the type of the weights, FP32 or FP16, and a feature
// is `scale` times its stored value. One field: `scale`, float, 1 by default.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "core/deformable_aggregation.h"

namespace s4d_trt {

constexpr int32_t kInputs = 5;
constexpr char kVersion[] = "1";

// Under which name and namespace a creator or plugin goes.
struct Identity {
  const char* name;
  const char* space;
};

class AggregationPlugin final : public nvinfer1::IPluginV3,
                                public nvinfer1::IPluginV3OneCore,
                                public nvinfer1::IPluginV3OneBuild,
                                public nvinfer1::IPluginV3OneRuntime {
 public:
  AggregationPlugin(Identity identity, float scale);

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // Core
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  // Build
  int32_t getNbOutputs() const noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t out_count) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* in_out,
                                 int32_t in_count, int32_t out_count) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t out_count,
                             const nvinfer1::DataType* in, int32_t in_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t in_count,
                          const nvinfer1::DimsExprs* shape_in, int32_t shape_in_count,
                          nvinfer1::DimsExprs* out, int32_t out_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                          const nvinfer1::DynamicPluginTensorDesc* out,
                          int32_t out_count) const noexcept override;

  // Runtime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t in_count,
                        const nvinfer1::PluginTensorDesc* out, int32_t out_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(
      nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  Identity identity_;
  float scale_;
  // What getFieldsToSerialize hands out points into this object.
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace s4d_trt
