// What every operator needs at ONNX Runtime's C interface: statuses as exceptions, and back.
#pragma once

#include <exception>
#include <vector>

#include "ort_abi.h"

namespace s4d_ort {

// Carries a status of the runtime up to the place that hands it back.
struct Failed {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status) throw Failed{status};
}

// No exception crosses the C interface.
template <class Work>
OrtStatus* guarded(const Api& api, const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::exception& error) {
    return api.create_status(kFail, error.what());
  } catch (...) {
    return api.create_status(kFail, "s4d operator: unknown error");
  }
}

struct TensorInput {
  const void* data = nullptr;
  std::vector<int64_t> sizes;
  ElementType type = kUndefined;
};

// One input of a call; `missing` is the message where it is not there.
inline TensorInput read_input(const Api& api, const OrtKernelContext* context, std::size_t index,
                              const char* missing) {
  const OrtValue* value = nullptr;
  check(api.input(context, index, &value));
  if (!value) throw Failed{api.create_status(kInvalidArgument, missing)};
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api.type_and_shape(value, &info));
  TensorInput input;
  std::size_t rank = 0;
  OrtStatus* status = api.element_type(info, &input.type);
  if (!status) status = api.rank(info, &rank);
  if (!status) {
    input.sizes.resize(rank);
    status = api.sizes(info, input.sizes.data(), rank);
  }
  api.release(info);
  check(status);
  void* data = nullptr;
  check(api.data(value, &data));
  input.data = data;
  return input;
}

// An operator with one output and required inputs, all where its provider computes; the rest is for
// the caller to fill in.
inline CustomOp plain_op() {
  CustomOp op{};
  op.version = kCustomOpVersion;
  op.GetOutputTypeCount = [](const CustomOp*) -> std::size_t { return 1; };
  op.GetInputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  op.GetOutputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, std::size_t) { return kDefaultMemory; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  return op;
}

inline CustomOp cuda_op() {
  CustomOp op = plain_op();
  op.GetExecutionProviderType = [](const CustomOp*) { return "CUDAExecutionProvider"; };
  return op;
}

}  // namespace s4d_ort
