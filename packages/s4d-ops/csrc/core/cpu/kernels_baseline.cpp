// The inner loops for what every machine of the target has; CMake sets the compiler's options.
#define S4D_KERNEL_TABLES kernel_tables_baseline
#define S4D_KERNEL_NAME "baseline"
#include "kernels.inl"
