// Makes aggregation plugins from fields: at build time from the node's attributes, at run time
// from what getFieldsToSerialize stored in the engine.
#pragma once

#include <NvInferRuntime.h>

#include <array>

#include "aggregation_plugin.h"

namespace s4d_trt {

class AggregationCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit AggregationCreator(Identity identity);

  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  // Null, with a message in the log, for a field that is unknown or not a positive finite scale.
  nvinfer1::IPluginV3* createPlugin(const char* name,
                                    const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  Identity identity_;
  std::array<nvinfer1::PluginField, 1> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace s4d_trt
