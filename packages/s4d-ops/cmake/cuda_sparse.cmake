# CUDA door of the sparse convolution core for Python without a framework: the extension module
# s4d_ops.lib._sparse_cuda.
if(NOT pybind11_FOUND)
  return()  # python_door.cmake has said why
endif()
pybind11_add_module(s4d_sparse_cuda MODULE NO_EXTRAS
  csrc/python/cuda_sparse.cpp csrc/python/cuda_program.cpp csrc/python/cuda_dlpack.cpp)
target_link_libraries(s4d_sparse_cuda PRIVATE s4d_core_cuda)
target_compile_options(s4d_sparse_cuda PRIVATE -Wall -Wextra)
target_link_options(s4d_sparse_cuda PRIVATE -Wl,-z,nodelete)
set_target_properties(s4d_sparse_cuda PROPERTIES OUTPUT_NAME _sparse_cuda SKIP_BUILD_RPATH ON)
install(TARGETS s4d_sparse_cuda LIBRARY DESTINATION lib)
set(S4D_BUILT "${S4D_BUILT} _sparse_cuda" CACHE INTERNAL "")
