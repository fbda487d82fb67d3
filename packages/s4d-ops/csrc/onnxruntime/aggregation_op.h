// The operator for ONNX Runtime, for any execution provider: one CustomOp per combination of
// types, a kernel object that reads inputs and reports errors as statuses, and the registration
// of both names. What a provider adds is a `Provider`.
#pragma once

#include <string>
#include <vector>

#include "core/deformable_aggregation.h"
#include "ort_abi.h"

namespace s4d_ort {

// Everything about one call. `args` is complete but for the stream.
struct AggregationCall {
  Api api;
  OrtKernelContext* context;
  s4d::AggregationForward args;
};

struct Provider {
  const char* name;  // "CPUExecutionProvider"
  // Runs the kernel; an empty string, or what went wrong.
  std::string (*run)(AggregationCall& call);
};

// Adds the operator for these providers to a session, under both names:
// s4d::DeformableAggregation and custom::DeformableAttentionAggrPlugin.
OrtStatus* register_aggregation(OrtSessionOptions* options, const OrtApiBase* base,
                                const std::vector<Provider>& providers);

}  // namespace s4d_ort
