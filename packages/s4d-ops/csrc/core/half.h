// Conversions between float and the 16-bit types, as bit arithmetic that compilers vectorise on
// every instruction set. Rounding is to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace s4d {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace {  // internal linkage: these are compiled once per instruction set

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }

inline float widen(Half value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = (static_cast<uint32_t>(value.bits) & 0x8000u) << 16;
  // 2^112 moves the exponent bias from 15 to 127 and normalises subnormal numbers on the way.
  const uint32_t finite = float_bits(bits_float(magnitude << 13) * 5.192296858534828e33f);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  return bits_float((magnitude >= 0x7c00u ? special : finite) | sign);
}

inline float widen(BFloat16 value) {
  return bits_float(static_cast<uint32_t>(value.bits) << 16);
}

// A row of half values at once: with the processor's own conversion where the compiler may use it.
inline void widen_row(const Half* from, float* to, int64_t count) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= count; i += 8) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(packed));
  }
#endif
  for (; i < count; ++i) to[i] = widen(from[i]);
}

inline void narrow(float value, float* out) { *out = value; }
inline void narrow(double value, double* out) { *out = value; }

inline void narrow(float value, Half* out) {
  const uint32_t bits = float_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude >= 0x47800000u) {  // 65536 and more, infinity, NaN
    result = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal half: let the adder round at the right bit
    result = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(result | ((bits >> 16) & 0x8000u));
}

inline void narrow(float value, BFloat16* out) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  out->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

}  // namespace
}  // namespace s4d
