#include "register_fused.h"

#include <mutex>

#include "chains_op.h"
#include "convolution_op.h"
#include "kernel_support.h"
#include "split_op.h"

namespace s4d_ort {

OrtStatus* register_fused(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* table = base->GetApi(kApiVersion);
  if (!table) {
    return Api(base->GetApi(1)).create_status(kFail, "s4d: ONNX Runtime 1.17 or later is needed");
  }
  const Api api(table);
  return guarded(api, [&] {
    // As long as the process: sessions refer to it.
    static std::mutex mutex;
    static OrtCustomOpDomain* domain = nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!domain) {
      OrtCustomOpDomain* fresh = nullptr;
      check(api.create_domain("s4d.fused", &fresh));
      for (const CustomOp* op : {convolution_op(false), convolution_op(true), dense_chains_op()}) {
        check(api.add_op(fresh, op));
      }
      for (const CustomOp* op : split_ops()) check(api.add_op(fresh, op));
      domain = fresh;
    }
    check(api.add_domain(options, domain));
  });
}

}  // namespace s4d_ort
