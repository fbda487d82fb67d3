// Entry point of the CPU library: SessionOptions.register_custom_ops_library calls it.
#include "aggregation_cpu.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  return s4d_ort::register_aggregation(options, base, {s4d_ort::cpu_provider()});
}
