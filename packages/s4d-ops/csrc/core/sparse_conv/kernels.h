// The inner loops that depend on the instruction set, behind one table of functions.
// kernels.inl is compiled once per instruction set; cpu_kernels() picks at run time.
#pragma once

#include <cstdint>

namespace s4d::sparse {

// Rows of the register tile: every matrix kernel works on this many gathered rows at once.
constexpr int kTileRows = 6;

struct Kernels {
  const char* name;
  int64_t width_f32;  // output channels of one weight panel
  int64_t width_f64;
  int64_t width_i8;

  // c[r][0..width) += sum over d of a[r][d] * w[d * width + 0..width)
  void (*multiply_f32)(const float* const* a, int64_t depth, const float* w, float* const* c);
  void (*multiply_f64)(const double* const* a, int64_t depth, const double* w, double* const* c);
  // Exact int32; depth counts pairs of input channels, w is (pair, width, 2), |values| <= 127.
  void (*multiply_i8)(const int16_t* const* a, int64_t depth, const int8_t* w, int32_t* const* c);

  // Elementwise rows of `n` values.
  void (*half_to_float)(const uint16_t* from, float* to, int64_t n);
  void (*float_to_half)(const float* from, uint16_t* to, int64_t n);  // round to nearest even
  void (*codes_to_float)(const int8_t* from, float scale, float* to, int64_t n);
  void (*scale_sums)(const int32_t* from, const float* scale, float* to, int64_t n);
  void (*round_codes)(float* values, float to_code, int64_t n);  // rint, clipped to +-127
  void (*scale_values)(float* values, float factor, int64_t n);
  void (*add)(float* values, const float* other, int64_t n);
  void (*relu)(float* values, int64_t n);
  void (*values_to_i8)(const float* codes, int8_t* to, int64_t n);
  void (*values_to_i16)(const float* codes, int16_t* to, int64_t n);
};

const Kernels& generic_kernels();
const Kernels* avx2_kernels();  // null where not compiled in or not supported by this processor
const Kernels& cpu_kernels();

}  // namespace s4d::sparse
