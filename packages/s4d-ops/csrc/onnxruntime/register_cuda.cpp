// Entry point of the CUDA library: SessionOptions.register_custom_ops_library calls it. It brings
// both providers, since a domain can be registered with a session only once: register this library
// or the CPU one, not both. The fused operators are on CUDA only.
#include "aggregation_cpu.h"
#include "aggregation_cuda.h"
#include "register_fused.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  OrtStatus* const status = s4d_ort::register_aggregation(
      options, base, {s4d_ort::cuda_provider(), s4d_ort::cpu_provider()});
  return status ? status : s4d_ort::register_fused(options, base);
}
