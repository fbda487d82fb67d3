// Inner loops for x86-64 with AVX2, FMA and F16C. Only this file is compiled for them, through the
// target pragma, so the library still loads on processors without them. It includes nothing but
// plain declarations after the pragma: no inline library code may be emitted for AVX2 here.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include <immintrin.h>

namespace s4d::sparse {

namespace {

constexpr int kVectorBytes = 32;
#include "kernels.inl"

// Two input channels at once: vpmaddwd multiplies 16-bit pairs and adds them exactly in 32 bits.
void multiply_i8(const int16_t* const* a, int64_t depth, const int8_t* w, int32_t* const* c) {
  __m256i sum[kTileRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
    sum[r][0] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(c[r]));
    sum[r][1] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(c[r] + 8));
  }
  for (int64_t d = 0; d < depth; ++d) {
    const __m256i w0 =
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
    const __m256i w1 =
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16)));
    w += 32;
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, a[r] + 2 * d, sizeof(pair));
      const __m256i x = _mm256_set1_epi32(pair);
      sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(x, w0));
      sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(x, w1));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c[r]), sum[r][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(c[r] + 8), sum[r][1]);
  }
}

void halves_to_floats(const uint16_t* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
  }
  for (; i < n; ++i) to[i] = _cvtsh_ss(from[i]);
}

void floats_to_halves(const float* from, uint16_t* to, int64_t n) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), nearest);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
  for (; i < n; ++i) to[i] = static_cast<uint16_t>(_cvtss_sh(from[i], nearest));
}

constexpr Kernels kTable{"avx2",
                     2 * VectorOf<float>::lanes,
                     2 * VectorOf<double>::lanes,
                     16,
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

}  // namespace
}  // namespace s4d::sparse

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace s4d::sparse {
const Kernels* avx2_kernels() {
  const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                         __builtin_cpu_supports("f16c");
  return supported ? &kTable : nullptr;
}
}  // namespace s4d::sparse

#else

namespace s4d::sparse {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace s4d::sparse

#endif
