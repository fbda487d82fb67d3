// Programmatic launches (compute capability 9.0 on): a kernel may start while the one ahead on the
// stream ends. Such a kernel must call wait_for_kernels in every thread, before it touches what others
// wrote, so that whoever waits for it has waited for all before it too.
#pragma once

#include <cuda_runtime.h>

namespace s4d::sparse::cuda {

// With programmatic launches: the next kernel may start its blocks; and: until the kernels before
// this one are complete and what they wrote can be seen. Nothing otherwise.
__device__ inline void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline void wait_for_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
cudaError_t launch_overlapped(void (*kernel)(Parameters...), dim3 grid, dim3 block, int shared,
                              bool overlap, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace s4d::sparse::cuda
