// Inner loops, written with the compiler's vector types. Included by one source file per
// instruction set, inside an unnamed namespace; that file sets kVectorBytes.
// Sums run over the depth in ascending order: the result does not depend on threads or tiling.

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
};

template <class T>
void multiply(const T* const* a, int64_t depth, const T* w, T* const* c) {
  using Vector = typename VectorOf<T>::type;
  constexpr int lanes = VectorOf<T>::lanes;
  Vector sum[kTileRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
    sum[r][0] = *reinterpret_cast<const Vector*>(c[r]);
    sum[r][1] = *reinterpret_cast<const Vector*>(c[r] + lanes);
  }
  for (int64_t d = 0; d < depth; ++d) {
    const Vector w0 = *reinterpret_cast<const Vector*>(w);
    const Vector w1 = *reinterpret_cast<const Vector*>(w + lanes);
    w += 2 * lanes;
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const T x = a[r][d];
      sum[r][0] += x * w0;
      sum[r][1] += x * w1;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
    *reinterpret_cast<Vector*>(c[r]) = sum[r][0];
    *reinterpret_cast<Vector*>(c[r] + lanes) = sum[r][1];
  }
}

void codes_to_float(const int8_t* from, float scale, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]) * scale;
}

void scale_sums(const int32_t* from, const float* scale, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]) * scale[i];
}

void round_codes(float* values, float to_code, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float code = values[i] * to_code;
    code = code < 127.0f ? code : 127.0f;
    code = code > -127.0f ? code : -127.0f;
    values[i] = __builtin_rintf(code);
  }
}

void scale_values(float* values, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= factor;
}

void add(float* values, const float* other, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] += other[i];
}

void relu(float* values, int64_t n) {
  // Written so that NaN stays NaN.
  for (int64_t i = 0; i < n; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
}

void values_to_i8(const float* codes, int8_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int8_t>(static_cast<int32_t>(codes[i]));
}

void values_to_i16(const float* codes, int16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int16_t>(static_cast<int32_t>(codes[i]));
}
