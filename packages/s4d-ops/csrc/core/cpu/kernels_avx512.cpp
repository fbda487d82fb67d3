// The inner loops for x86-64 with AVX512; CMake sets the compiler's options.
#define S4D_KERNEL_TABLES kernel_tables_avx512
#define S4D_KERNEL_NAME "avx512"
#include "kernels.inl"
