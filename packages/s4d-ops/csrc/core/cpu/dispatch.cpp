#include <cstdlib>
#include <string>

#include "kernels.h"

namespace s4d {
namespace {

const KernelTables& choose() {
#ifdef S4D_X86_VARIANTS
  const char* text = std::getenv("S4D_CPU_CAPABILITY");
  const std::string limit = text ? text : "";
  if (limit == "baseline") return kernel_tables_baseline();
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512 && limit != "avx2") return kernel_tables_avx512();
  if (avx2) return kernel_tables_avx2();
#endif
  return kernel_tables_baseline();
}

}  // namespace

const KernelTables& kernel_tables() {
  static const KernelTables& tables = choose();
  return tables;
}

}  // namespace s4d
