# CUDA kernels and the CUDA side of each door. nvcc alone is needed, no GPU: the CUDA runtime is
# linked statically, so the libraries load on machines without CUDA and say so when called.
if(S4D_CUDA STREQUAL "OFF")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  s4d_cannot_build(S4D_CUDA "no CUDA compiler was found (nvcc; set CUDACXX to its path)")
  return()
endif()

# Machine code for these, as far as nvcc knows them, and portable code (PTX) for the rest.
set(S4D_CUDA_ARCHITECTURES "$ENV{S4D_CUDA_ARCHITECTURES}" CACHE STRING
  "GPU architectures, as in CMAKE_CUDA_ARCHITECTURES; empty: all that s4d-ops supports")
if(S4D_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${S4D_CUDA_ARCHITECTURES})
else()
  execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch
    OUTPUT_VARIABLE S4D_NVCC_KNOWS ERROR_QUIET)
  set(CMAKE_CUDA_ARCHITECTURES "")
  foreach(arch IN ITEMS 75 80 86 87 89 90 100 120)
    if(S4D_NVCC_KNOWS MATCHES "compute_${arch}[\r\n]")
      if(arch EQUAL 90 OR arch EQUAL 120)
        list(APPEND CMAKE_CUDA_ARCHITECTURES ${arch})  # machine code and PTX
      else()
        list(APPEND CMAKE_CUDA_ARCHITECTURES ${arch}-real)
      endif()
    endif()
  endforeach()
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
if(NOT CMAKE_CUDA_FLAGS_RELEASE)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

file(GLOB_RECURSE S4D_CUDA_CORE CONFIGURE_DEPENDS csrc/core/*.cu)
list(FILTER S4D_CUDA_CORE EXCLUDE REGEX "_wgmma_cuda\\.cu$")
add_library(s4d_core_cuda STATIC ${S4D_CUDA_CORE})
target_include_directories(s4d_core_cuda PUBLIC csrc)
target_link_libraries(s4d_core_cuda PUBLIC s4d_core_cpu CUDA::cudart_static)
target_compile_options(s4d_core_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-Xfatbin=-compress-all>)

# Warpgroup instructions of compute capability 9.0 are only in the target sm_90a, whatever else is
# built for 9.0. Other devices, and builds without this, take kernels that run on any.
set(S4D_BUILT_FOR ${CMAKE_CUDA_ARCHITECTURES})
if(S4D_BUILT_FOR STREQUAL "native")
  set(S4D_BUILT_FOR ${CMAKE_CUDA_ARCHITECTURES_NATIVE})
endif()
if(S4D_BUILT_FOR MATCHES "(^|;)90|all"
   AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0)
  add_library(s4d_core_wgmma OBJECT csrc/core/sparse_conv/convolution_wgmma_cuda.cu)
  set_target_properties(s4d_core_wgmma PROPERTIES CUDA_ARCHITECTURES OFF)
  target_include_directories(s4d_core_wgmma PRIVATE csrc)
  target_compile_options(s4d_core_wgmma PRIVATE
    "--generate-code=arch=compute_90a,code=[sm_90a]" -Xfatbin=-compress-all)
  target_sources(s4d_core_cuda PRIVATE $<TARGET_OBJECTS:s4d_core_wgmma>)
  set_source_files_properties(csrc/core/sparse_conv/convolution_cuda.cu PROPERTIES
    COMPILE_DEFINITIONS S4D_WITH_WGMMA)
endif()

# The image kernel forms its weights in double precision exactly as the CPU does.
set_source_files_properties(csrc/core/image_resize.cu PROPERTIES COMPILE_OPTIONS -fmad=false)

# A door with both cores inside.
function(s4d_add_cuda_door name)
  s4d_add_door(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE s4d_core_cuda)
endfunction()

if(S4D_TORCH_FOUND)
  file(GLOB S4D_TORCH_CUDA CONFIGURE_DEPENDS csrc/torch/*cuda*.cpp)
  s4d_add_cuda_door(s4d_torch_cuda ${S4D_TORCH_CUDA})
  s4d_torch_properties(s4d_torch_cuda)
  target_compile_options(s4d_torch_cuda PRIVATE -Wall -Wextra -Wno-unused-parameter)
  target_link_libraries(s4d_torch_cuda PRIVATE ${CMAKE_DL_LIBS})
endif()

if(NOT S4D_ORT STREQUAL "OFF")
  s4d_add_cuda_door(s4d_ort_cuda csrc/onnxruntime/aggregation_op.cpp
    csrc/onnxruntime/aggregation_cpu.cpp csrc/onnxruntime/aggregation_cuda.cpp
    csrc/onnxruntime/convolution_op.cpp csrc/onnxruntime/cudnn_convolution.cpp
    csrc/onnxruntime/chains_op.cpp csrc/core/dense_chains.cpp
    csrc/onnxruntime/split_op.cpp csrc/onnxruntime/register_fused.cpp
    csrc/onnxruntime/register_cuda.cpp)
  target_compile_options(s4d_ort_cuda PRIVATE -Wall -Wextra)
  target_link_libraries(s4d_ort_cuda PRIVATE ${CMAKE_DL_LIBS})
endif()

if(NOT S4D_PYTHON STREQUAL "OFF")
  s4d_add_cuda_door(s4d_image_cuda csrc/python/image_cuda.cpp)
  target_compile_options(s4d_image_cuda PRIVATE -Wall -Wextra)
  include(cuda_sparse)
endif()

include(cuda_tensorrt)
