// The inner loops for x86-64 with AVX2; CMake sets the compiler's options.
#define S4D_KERNEL_TABLES kernel_tables_avx2
#define S4D_KERNEL_NAME "avx2"
#include "kernels.inl"
