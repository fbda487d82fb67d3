// The CUDA execution provider's side of the operator: the kernel runs on the session's stream.
#include "aggregation_cuda.h"

#include "core/deformable_aggregation_cuda.h"

namespace s4d_ort {
namespace {

std::string run(AggregationCall& call) {
  if (OrtStatus* status = call.api.gpu_stream(call.context, &call.args.stream)) {
    call.api.release(status);
    return "ONNX Runtime did not give its CUDA stream";
  }
  return s4d::aggregation_forward_cuda(call.args);
}

}  // namespace

Provider cuda_provider() { return {"CUDAExecutionProvider", &run}; }

}  // namespace s4d_ort
