# The kernel core: no framework header in sight.

file(GLOB S4D_CORE_SPARSE CONFIGURE_DEPENDS csrc/core/sparse_conv/*.cpp)

add_library(s4d_core_cpu STATIC
  csrc/core/deformable_aggregation.cpp
  csrc/core/image_resize.cpp
  csrc/core/parallel.cpp
  csrc/core/cpu/aggregation_cpu.cpp
  csrc/core/cpu/image_cpu.cpp
  csrc/core/cpu/dispatch.cpp
  csrc/core/cpu/kernels_baseline.cpp
  ${S4D_CORE_SPARSE}
)
target_include_directories(s4d_core_cpu PUBLIC csrc)
target_link_libraries(s4d_core_cpu PUBLIC Threads::Threads)
target_compile_options(s4d_core_cpu PRIVATE -Wall -Wextra -ffunction-sections -fdata-sections
  -fmacro-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=)

# "omp simd" as a vectorisation hint only: no OpenMP runtime, whose two common versions do not
# live well in one process.
set(S4D_KERNEL_OPTIONS -fopenmp-simd -fno-math-errno -fno-trapping-math)
set_source_files_properties(csrc/core/cpu/kernels_baseline.cpp PROPERTIES
  COMPILE_OPTIONS "${S4D_KERNEL_OPTIONS}")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  target_sources(s4d_core_cpu PRIVATE
    csrc/core/cpu/kernels_avx2.cpp csrc/core/cpu/kernels_avx512.cpp)
  target_compile_definitions(s4d_core_cpu PRIVATE S4D_X86_VARIANTS)
  set_source_files_properties(csrc/core/cpu/kernels_avx2.cpp PROPERTIES
    COMPILE_OPTIONS "${S4D_KERNEL_OPTIONS};-mavx2;-mfma;-mf16c;-mtune=haswell")
  set_source_files_properties(csrc/core/cpu/kernels_avx512.cpp PROPERTIES
    COMPILE_OPTIONS "${S4D_KERNEL_OPTIONS};-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx2;-mfma;-mf16c;-mprefer-vector-width=512")
endif()
