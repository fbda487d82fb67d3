// The last step of a layer on rows of floats: quantise and restore, add, activate, store.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "convolution.h"

namespace s4d::sparse {

inline void activate(const Kernels& kernels, Activation activation, float slope, float* row,
                     int64_t n) {
  switch (activation) {
    case Activation::none: break;
    case Activation::relu: kernels.relu(row, n); break;
    case Activation::leaky_relu:
      for (int64_t i = 0; i < n; ++i) row[i] = row[i] < 0.0f ? row[i] * slope : row[i];
      break;
    case Activation::sigmoid:
      for (int64_t i = 0; i < n; ++i) row[i] = 1.0f / (1.0f + std::exp(-row[i]));
      break;
  }
}

inline void activate(Activation activation, double slope, double* row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    switch (activation) {
      case Activation::none: break;
      case Activation::relu: row[i] = row[i] < 0.0 ? 0.0 : row[i]; break;
      case Activation::leaky_relu: row[i] = row[i] < 0.0 ? row[i] * slope : row[i]; break;
      case Activation::sigmoid: row[i] = 1.0 / (1.0 + std::exp(-row[i])); break;
    }
  }
}

// Round to the int8 grid of `range` and back; nothing for range 0.
inline void quantise_and_restore(const Kernels& kernels, float range, float* row, int64_t n) {
  if (range <= 0.0f) return;
  kernels.round_codes(row, 127.0f / range, n);
  kernels.scale_values(row, range / 127.0f, n);
}

inline void load_row(const Kernels& kernels, const Features& from, int64_t row, float* to,
                     int64_t n) {
  switch (from.type) {
    case DType::f32:
      std::memcpy(to, static_cast<const float*>(from.data) + row * n, sizeof(float) * n);
      break;
    case DType::f16:
      kernels.half_to_float(static_cast<const uint16_t*>(from.data) + row * n, to, n);
      break;
    case DType::i8:
      kernels.codes_to_float(static_cast<const int8_t*>(from.data) + row * n, from.range / 127.0f,
                             to, n);
      break;
    default: break;
  }
}

// Destroys `values` where it stores codes.
inline void store_row(const Kernels& kernels, float* values, const Features& to, int64_t row,
                      int64_t n) {
  void* data = const_cast<void*>(to.data);
  switch (to.type) {
    case DType::f32:
      std::memcpy(static_cast<float*>(data) + row * n, values, sizeof(float) * n);
      break;
    case DType::f16:
      kernels.float_to_half(values, static_cast<uint16_t*>(data) + row * n, n);
      break;
    case DType::i8:
      kernels.round_codes(values, 127.0f / to.range, n);
      kernels.values_to_i8(values, static_cast<int8_t*>(data) + row * n, n);
      break;
    default: break;
  }
}

inline void check_features(const Features& features, const char* role, bool needed) {
  if (!features.data && !needed) return;
  const bool known = features.type == DType::f32 || features.type == DType::f16 ||
                     features.type == DType::i8;
  if (!known) {
    throw InvalidSparseInput(std::string("expected ") + role +
                             " of float32, float16 or int8, got " + name(features.type));
  }
  if (features.type == DType::i8 && !(features.range > 0.0f && std::isfinite(features.range))) {
    throw InvalidSparseInput(std::string("int8 ") + role + " needs a positive finite range");
  }
}

}  // namespace s4d::sparse
