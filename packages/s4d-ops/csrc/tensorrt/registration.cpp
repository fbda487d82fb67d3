// The two symbols that TensorRT looks for in a plugin library: IPluginRegistry::loadLibrary calls
// them, and so does an engine that carries this library inside itself.
#include <NvInferRuntime.h>

#include <array>
#include <cstdint>

#include "aggregation_creator.h"
#include "logging.h"

namespace {

// The ONNX parser of TensorRT 10.10 and later takes a node's domain as the namespace, earlier ones
// the attribute plugin_namespace: the op is known under both. The second name is that of
// SparseEnd2End's files, whose nodes have the domain "custom" or none.
std::array<s4d_trt::AggregationCreator, 4>& creators() {
  static std::array<s4d_trt::AggregationCreator, 4> all = {
      s4d_trt::AggregationCreator({"DeformableAggregation", ""}),
      s4d_trt::AggregationCreator({"DeformableAggregation", "s4d"}),
      s4d_trt::AggregationCreator({"DeformableAttentionAggrPlugin", ""}),
      s4d_trt::AggregationCreator({"DeformableAttentionAggrPlugin", "custom"}),
  };
  return all;
}

}  // namespace

#define S4D_EXPORT extern "C" __attribute__((visibility("default")))

S4D_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  s4d_trt::set_logger_finder(finder);
}

S4D_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static const std::array<nvinfer1::IPluginCreatorInterface*, 4> pointers = [] {
    std::array<nvinfer1::IPluginCreatorInterface*, 4> list{};
    for (std::size_t i = 0; i < list.size(); ++i) list[i] = &creators()[i];
    return list;
  }();
  count = static_cast<int32_t>(pointers.size());
  return pointers.data();
}
