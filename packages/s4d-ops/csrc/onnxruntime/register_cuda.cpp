// Entry point of the CUDA library: SessionOptions.register_custom_ops_library calls it. It brings
// both providers, since a domain can be registered with a session only once: register this library
// or the CPU one, not both.
#include "aggregation_cpu.h"
#include "aggregation_cuda.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  return s4d_ort::register_aggregation(options, base,
                                       {s4d_ort::cuda_provider(), s4d_ort::cpu_provider()});
}
