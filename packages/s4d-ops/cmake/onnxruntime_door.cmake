# ONNX Runtime door, CPU side. Needs no ONNX Runtime header: csrc/onnxruntime/ort_abi.h declares
# the part of the C interface that is used.
if(S4D_ORT STREQUAL "OFF")
  return()
endif()
file(GLOB S4D_ORT_SPARSE CONFIGURE_DEPENDS csrc/onnxruntime/sparse*.cpp)
list(FILTER S4D_ORT_SPARSE EXCLUDE REGEX "cuda")
s4d_add_door(s4d_ort_cpu csrc/onnxruntime/aggregation_op.cpp
  csrc/onnxruntime/aggregation_cpu.cpp csrc/onnxruntime/register_cpu.cpp
  ${S4D_ORT_SPARSE})
target_compile_options(s4d_ort_cpu PRIVATE -Wall -Wextra)
