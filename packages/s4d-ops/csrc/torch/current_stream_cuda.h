// The caller's current CUDA stream, through torch's C interface.
//
// The symbol lives in libtorch_cuda.so. It is looked up in the running process rather than linked,
// so that this library also builds against a CPU-only torch.
#pragma once

#include <dlfcn.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace s4d_torch {

inline void* current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t device, void** stream);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    return reinterpret_cast<Getter>(
        library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(getter != nullptr,
                  "expected a torch build with CUDA (libtorch_cuda.so with "
                  "aoti_torch_get_current_cuda_stream); this torch has none");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "torch did not give its current CUDA stream");
  return stream;
}

}  // namespace s4d_torch
