# Torch door, CPU side, on the libtorch stable ABI: one binary for torch 2.11 and all later ones.
# Sets S4D_TORCH_FOUND, S4D_TORCH_INCLUDE_DIR and S4D_TORCH_LIB_DIR for the CUDA side.
set(S4D_TORCH_FOUND FALSE)
if(S4D_TORCH STREQUAL "OFF")
  return()
endif()

set(S4D_TORCH_ROOT "" CACHE PATH "Folder of the torch package; empty: that of the Python in use")
set(S4D_TORCH_ROOT_IN_USE "${S4D_TORCH_ROOT}")
if(NOT S4D_TORCH_ROOT_IN_USE AND Python_EXECUTABLE)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE S4D_TORCH_ROOT_IN_USE OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT EXISTS "${S4D_TORCH_ROOT_IN_USE}/include/torch/csrc/stable/library.h")
  s4d_cannot_build(S4D_TORCH
    "torch 2.11 or later is not importable in the build environment (with pip, set the environment variable S4D_TORCH=ON, or pass --no-build-isolation with torch installed)")
  return()
endif()
file(STRINGS "${S4D_TORCH_ROOT_IN_USE}/include/torch/headeronly/version.h" S4D_TORCH_VERSION_LINES
  REGEX "^#define TORCH_VERSION_(MAJOR|MINOR) ")
string(REGEX REPLACE "[^0-9;]" "" S4D_TORCH_VERSION_LIST "${S4D_TORCH_VERSION_LINES}")
string(REPLACE ";" "." S4D_TORCH_VERSION "${S4D_TORCH_VERSION_LIST}")
if(S4D_TORCH_VERSION VERSION_LESS 2.11)
  s4d_cannot_build(S4D_TORCH "torch ${S4D_TORCH_VERSION} is older than 2.11")
  return()
endif()
set(S4D_TORCH_FOUND TRUE)
set(S4D_TORCH_INCLUDE_DIR "${S4D_TORCH_ROOT_IN_USE}/include")
set(S4D_TORCH_LIB_DIR "${S4D_TORCH_ROOT_IN_USE}/lib")

# Common to the CPU and the CUDA library.
function(s4d_torch_properties name)
  target_include_directories(${name} SYSTEM PRIVATE "${S4D_TORCH_INCLUDE_DIR}")
  target_compile_definitions(${name} PRIVATE TORCH_TARGET_VERSION=0x020b000000000000)
  # Linked for its name only: torch is in the process before this library is loaded.
  target_link_libraries(${name} PRIVATE "${S4D_TORCH_LIB_DIR}/libtorch_cpu.so")
  target_link_options(${name} PRIVATE -Wl,--allow-shlib-undefined)
endfunction()

file(GLOB S4D_TORCH_SPARSE CONFIGURE_DEPENDS csrc/torch/sparse*.cpp)
list(FILTER S4D_TORCH_SPARSE EXCLUDE REGEX "cuda")
s4d_add_door(s4d_torch_cpu csrc/torch/aggregation_schema.cpp csrc/torch/aggregation_cpu.cpp
  ${S4D_TORCH_SPARSE})
s4d_torch_properties(s4d_torch_cpu)
target_compile_options(s4d_torch_cpu PRIVATE -Wall -Wextra -Wno-unused-parameter)
