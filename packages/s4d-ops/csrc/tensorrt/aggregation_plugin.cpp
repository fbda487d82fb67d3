#include "aggregation_plugin.h"

#include <array>
#include <stdexcept>

#include "core/deformable_aggregation_cuda.h"
#include "logging.h"

namespace s4d_trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

s4d::DType core_type(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return s4d::DType::f32;
    case DataType::kHALF: return s4d::DType::f16;
    case DataType::kBF16: return s4d::DType::bf16;
    case DataType::kINT8: return s4d::DType::i8;
    case DataType::kINT32: return s4d::DType::i32;
    case DataType::kINT64: return s4d::DType::i64;
    default: throw std::invalid_argument("a tensor has a type that the plugin does not take");
  }
}

bool is_float(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

// The type of the output for these inputs.
DataType output_type(DataType features, DataType weights) {
  return features == DataType::kINT8 ? weights : features;
}

// Shape of one tensor, in memory of its own: TensorShape borrows.
struct Sizes {
  std::array<int64_t, nvinfer1::Dims::MAX_DIMS> values{};
  s4d::TensorShape shape;

  explicit Sizes(const PluginTensorDesc& tensor) {
    require(tensor.dims.nbDims >= 0 && tensor.dims.nbDims <= nvinfer1::Dims::MAX_DIMS,
            "a tensor has an invalid number of dimensions");
    for (int32_t i = 0; i < tensor.dims.nbDims; ++i) values[i] = tensor.dims.d[i];
    shape = {values.data(), tensor.dims.nbDims, core_type(tensor.type)};
  }
};

// Checks the five inputs and the output; returns the sizes.
s4d::AggregationShape checked_shape(const PluginTensorDesc* in, const PluginTensorDesc* out) {
  const Sizes features(in[0]), shapes(in[1]), starts(in[2]), locations(in[3]), weights(in[4]);
  s4d::AggregationShape shape;
  const std::string problem = s4d::check_aggregation(features.shape, shapes.shape, starts.shape,
                                                     locations.shape, weights.shape, &shape);
  if (!problem.empty()) throw std::invalid_argument(problem);
  const nvinfer1::Dims& dims = out[0].dims;
  require(dims.nbDims == 3 && dims.d[0] == shape.batch && dims.d[1] == shape.anchors &&
              dims.d[2] == shape.channels,
          "expected an output of shape (B, A, C)");
  return shape;
}

}  // namespace

AggregationPlugin::AggregationPlugin(Identity identity, float scale)
    : identity_(identity), scale_(scale) {}

nvinfer1::IPluginCapability* AggregationPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* AggregationPlugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(
      "clone", nullptr, [&] { return new AggregationPlugin(identity_, scale_); });
}

const char* AggregationPlugin::getPluginName() const noexcept { return identity_.name; }
const char* AggregationPlugin::getPluginVersion() const noexcept { return kVersion; }
const char* AggregationPlugin::getPluginNamespace() const noexcept { return identity_.space; }

int32_t AggregationPlugin::getNbOutputs() const noexcept { return 1; }

int32_t AggregationPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in,
                                           int32_t in_count,
                                           const nvinfer1::DynamicPluginTensorDesc* out,
                                           int32_t out_count) noexcept {
  return guarded("configurePlugin", -1, [&] {
    require(in != nullptr && out != nullptr && in_count == kInputs && out_count == 1,
            "expected five inputs and one output");
    // Sizes can still be open (-1); onShapeChange checks them all.
    const int32_t ranks[kInputs] = {3, 3, 2, 5, 6};
    for (int32_t i = 0; i < kInputs; ++i) {
      require(in[i].desc.dims.nbDims == ranks[i],
              "expected features (B, F, C), spatial_shapes (N, L, 2), level_start_index (N, L), "
              "sampling_locations (B, A, P, N, 2), weights (B, A, P, N, L, G)");
    }
    return 0;
  });
}

bool AggregationPlugin::supportsFormatCombination(int32_t position,
                                                  const nvinfer1::DynamicPluginTensorDesc* in_out,
                                                  int32_t in_count, int32_t out_count) noexcept {
  if (in_out == nullptr || in_count != kInputs || out_count != 1 || position < 0 ||
      position > kInputs || in_out[position].desc.format != nvinfer1::TensorFormat::kLINEAR) {
    return false;
  }
  const DataType type = in_out[position].desc.type;
  const DataType features = in_out[0].desc.type;
  switch (position) {
    case 0: return is_float(type) || type == DataType::kINT8;
    case 1: return type == DataType::kINT32 || type == DataType::kINT64;
    case 2: return type == in_out[1].desc.type;
    case 3: return is_float(type);
    case 4:
      return is_float(type) && (features != DataType::kINT8 || type != DataType::kBF16);
    default: return type == output_type(features, in_out[4].desc.type);
  }
}

int32_t AggregationPlugin::getOutputDataTypes(DataType* out, int32_t out_count, const DataType* in,
                                              int32_t in_count) const noexcept {
  return guarded("getOutputDataTypes", -1, [&] {
    require(in != nullptr && out != nullptr && in_count == kInputs && out_count == 1,
            "expected five inputs and one output");
    out[0] = output_type(in[0], in[4]);
    return 0;
  });
}

int32_t AggregationPlugin::getOutputShapes(const nvinfer1::DimsExprs* in, int32_t in_count,
                                           const nvinfer1::DimsExprs* /*shape_in*/,
                                           int32_t /*shape_in_count*/, nvinfer1::DimsExprs* out,
                                           int32_t out_count,
                                           nvinfer1::IExprBuilder& /*builder*/) noexcept {
  return guarded("getOutputShapes", -1, [&] {
    require(in != nullptr && out != nullptr && in_count == kInputs && out_count == 1,
            "expected five inputs and one output");
    require(in[0].nbDims == 3 && in[3].nbDims == 5,
            "expected features (B, F, C) and sampling_locations (B, A, P, N, 2)");
    out[0].nbDims = 3;
    out[0].d[0] = in[0].d[0];
    out[0].d[1] = in[3].d[1];
    out[0].d[2] = in[0].d[2];
    return 0;
  });
}

size_t AggregationPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* /*in*/,
                                           int32_t /*in_count*/,
                                           const nvinfer1::DynamicPluginTensorDesc* /*out*/,
                                           int32_t /*out_count*/) const noexcept {
  return 0;
}

int32_t AggregationPlugin::onShapeChange(const PluginTensorDesc* in, int32_t in_count,
                                         const PluginTensorDesc* out, int32_t out_count) noexcept {
  return guarded("onShapeChange", -1, [&] {
    require(in != nullptr && out != nullptr && in_count == kInputs && out_count == 1,
            "expected five inputs and one output");
    checked_shape(in, out);
    return 0;
  });
}

int32_t AggregationPlugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out,
                                   const void* const* inputs, void* const* outputs,
                                   void* /*workspace*/, cudaStream_t stream) noexcept {
  return guarded("enqueue", -1, [&] {
    require(in != nullptr && out != nullptr && inputs != nullptr && outputs != nullptr,
            "expected tensor descriptions and addresses");
    s4d::AggregationForward args;
    args.shape = checked_shape(in, out);
    args.feature_type = core_type(in[0].type);
    args.index_type = core_type(in[1].type);
    args.location_type = core_type(in[3].type);
    args.weight_type = core_type(in[4].type);
    args.output_type = core_type(out[0].type);
    require(out[0].type == output_type(in[0].type, in[4].type),
            "expected an output of the features' type (of the weights' type for INT8 features)");
    args.feature_scale = in[0].type == DataType::kINT8 ? scale_ : 1.0f;
    args.features = inputs[0];
    args.spatial_shapes = inputs[1];
    args.level_start_index = inputs[2];
    args.locations = inputs[3];
    args.weights = inputs[4];
    args.output = outputs[0];
    args.stream = stream;
    const std::string problem = s4d::aggregation_forward_cuda(args);
    if (!problem.empty()) throw std::runtime_error(problem);
    return 0;
  });
}

nvinfer1::IPluginV3* AggregationPlugin::attachToContext(
    nvinfer1::IPluginResourceContext* /*context*/) noexcept {
  return clone();
}

const nvinfer1::PluginFieldCollection* AggregationPlugin::getFieldsToSerialize() noexcept {
  return guarded<const nvinfer1::PluginFieldCollection*>(
      "getFieldsToSerialize", nullptr, [&] {
        fields_.assign(1, {"scale", &scale_, nvinfer1::PluginFieldType::kFLOAT32, 1});
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
        return &collection_;
      });
}

}  // namespace s4d_trt
