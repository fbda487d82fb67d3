// Inner loops for any processor: 16-byte vectors, lowered by the compiler to what it has.
#include <cstdlib>
#include <cstring>

#include "../half.h"
#include "kernels.h"

namespace s4d::sparse {

namespace {

constexpr int kVectorBytes = 16;
#include "kernels.inl"

constexpr int kWidthI8 = 8;

void multiply_i8(const int16_t* const* a, int64_t depth, const int8_t* w, int32_t* const* c) {
  for (int r = 0; r < kTileRows; ++r) {
    int32_t sum[kWidthI8];
    std::memcpy(sum, c[r], sizeof(sum));
    for (int64_t d = 0; d < depth; ++d) {
      const int32_t x0 = a[r][2 * d];
      const int32_t x1 = a[r][2 * d + 1];
      const int8_t* panel = w + d * 2 * kWidthI8;
      for (int j = 0; j < kWidthI8; ++j) sum[j] += x0 * panel[2 * j] + x1 * panel[2 * j + 1];
    }
    std::memcpy(c[r], sum, sizeof(sum));
  }
}

void halves_to_floats(const uint16_t* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen(Half{from[i]});
}

void floats_to_halves(const float* from, uint16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    Half half;
    narrow(from[i], &half);
    to[i] = half.bits;
  }
}

}  // namespace

const Kernels& generic_kernels() {
  static constexpr Kernels table{"baseline",
                             2 * VectorOf<float>::lanes,
                             2 * VectorOf<double>::lanes,
                             kWidthI8,
                             multiply<float>,
                             multiply<double>,
                             multiply_i8,
                             halves_to_floats,
                             floats_to_halves,
                             codes_to_float,
                             scale_sums,
                             round_codes,
                             scale_values,
                             add,
                             relu,
                             values_to_i8,
                             values_to_i16};
  return table;
}

// S4D_CPU_CAPABILITY=baseline, as for the other kernels, keeps to the plain ones.
const Kernels& cpu_kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* limit = std::getenv("S4D_CPU_CAPABILITY");
    const bool baseline = limit && std::strcmp(limit, "baseline") == 0;
    return !baseline && avx2_kernels() ? *avx2_kernels() : generic_kernels();
  }();
  return chosen;
}

}  // namespace s4d::sparse
