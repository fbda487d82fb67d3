#include "aggregation_creator.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "logging.h"

namespace s4d_trt {
namespace {

// Attributes by which the ONNX parser finds the creator; they carry nothing for the plugin.
bool names_the_plugin(const char* field) {
  return std::strcmp(field, "plugin_version") == 0 || std::strcmp(field, "plugin_namespace") == 0;
}

float read_scale(const nvinfer1::PluginFieldCollection* fields) {
  float scale = 1.0f;
  if (fields == nullptr) return scale;
  if (fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
    throw std::invalid_argument("expected a valid collection of fields");
  }
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const nvinfer1::PluginField& field = fields->fields[i];
    if (field.name == nullptr) throw std::invalid_argument("a field has no name");
    if (names_the_plugin(field.name)) continue;
    if (std::strcmp(field.name, "scale") != 0) {
      throw std::invalid_argument(std::string("unknown field '") + field.name +
                                  "'; expected 'scale'");
    }
    if (field.type != nvinfer1::PluginFieldType::kFLOAT32 || field.length != 1 ||
        field.data == nullptr) {
      throw std::invalid_argument("expected field 'scale' as one float");
    }
    std::memcpy(&scale, field.data, sizeof(scale));
    if (!std::isfinite(scale) || scale <= 0.0f) {
      throw std::invalid_argument("expected a finite scale above 0");
    }
  }
  return scale;
}

}  // namespace

AggregationCreator::AggregationCreator(Identity identity)
    : identity_(identity),
      fields_{nvinfer1::PluginField("scale", nullptr, nvinfer1::PluginFieldType::kFLOAT32, 1)},
      collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

const char* AggregationCreator::getPluginName() const noexcept { return identity_.name; }
const char* AggregationCreator::getPluginVersion() const noexcept { return kVersion; }
const char* AggregationCreator::getPluginNamespace() const noexcept { return identity_.space; }

const nvinfer1::PluginFieldCollection* AggregationCreator::getFieldNames() noexcept {
  return &collection_;
}

nvinfer1::IPluginV3* AggregationCreator::createPlugin(
    const char* /*name*/, const nvinfer1::PluginFieldCollection* fields,
    nvinfer1::TensorRTPhase /*phase*/) noexcept {
  return guarded<nvinfer1::IPluginV3*>("createPlugin", nullptr, [&] {
    return new AggregationPlugin(identity_, read_scale(fields));
  });
}

}  // namespace s4d_trt
