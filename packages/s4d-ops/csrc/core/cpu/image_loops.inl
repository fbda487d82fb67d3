// Image resize: the loops over pixels. Integer arithmetic, so every instruction set gives the
// same bytes.
#include <stdint.h>
#include <string.h>

namespace s4d {
namespace {

constexpr int kRows = 8;  // image rows that the horizontal pass takes side by side

inline uint8_t clip(int32_t fixed) {
  const int32_t value = fixed >> 22;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Eight rows are interleaved byte by byte, so that one vector holds the same column and channel
// of eight rows and a coefficient applies to all of them.
void horizontal_pass(const uint8_t* src, int64_t src_stride, int64_t rows, int64_t src_begin,
                     int64_t src_end, const int32_t* bounds, const int32_t* coefficients,
                     int64_t taps, int64_t out_width, uint8_t* out, int64_t out_stride,
                     uint8_t* scratch) {
  const int64_t bytes = 3 * (src_end - src_begin);
  const uint8_t* lines[kRows];
  for (int r = 0; r < kRows; ++r) {  // missing rows repeat the last one and are not stored
    lines[r] = src + (r < rows ? r : rows - 1) * src_stride + 3 * src_begin;
  }
  for (int64_t i = 0; i < bytes; ++i) {
    uint8_t packed[kRows];
    for (int r = 0; r < kRows; ++r) packed[r] = lines[r][i];
    memcpy(scratch + kRows * i, packed, kRows);
  }
  for (int64_t x = 0; x < out_width; ++x) {
    const uint8_t* from = scratch + 3 * kRows * (bounds[2 * x] - src_begin);
    const int32_t* k = coefficients + x * taps;
    int32_t sums[3 * kRows];
    for (int j = 0; j < 3 * kRows; ++j) sums[j] = 1 << 21;
    for (int32_t t = 0; t < bounds[2 * x + 1]; ++t, from += 3 * kRows) {
      const int32_t factor = k[t];
      for (int j = 0; j < 3 * kRows; ++j) sums[j] += factor * from[j];
    }
    uint8_t result[3 * kRows];
    for (int j = 0; j < 3 * kRows; ++j) result[j] = clip(sums[j]);
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* pixel = out + r * out_stride + 3 * x;
      pixel[0] = result[r];
      pixel[1] = result[kRows + r];
      pixel[2] = result[2 * kRows + r];
    }
  }
}

void vertical_pass(const uint8_t* src, int64_t stride, int64_t count, const int32_t* coefficients,
                   int64_t bytes, uint8_t* out) {
  constexpr int64_t block = 32;
  int64_t i = 0;
  for (; i + block <= bytes; i += block) {
    int32_t sums[block];
    for (int j = 0; j < block; ++j) sums[j] = 1 << 21;
    for (int64_t k = 0; k < count; ++k) {
      const uint8_t* from = src + k * stride + i;
      const int32_t factor = coefficients[k];
      for (int j = 0; j < block; ++j) sums[j] += factor * from[j];
    }
    for (int j = 0; j < block; ++j) out[i + j] = clip(sums[j]);
  }
  for (; i < bytes; ++i) {
    int32_t sum = 1 << 21;
    for (int64_t k = 0; k < count; ++k) sum += coefficients[k] * src[k * stride + i];
    out[i] = clip(sum);
  }
}

void bilinear_row(const uint8_t* top, const uint8_t* bottom, int32_t beta_top, int32_t beta_bottom,
                  const int32_t* columns, const int32_t* alphas, int64_t out_width, uint8_t* out) {
  for (int64_t x = 0; x < out_width; ++x) {
    const int32_t left = 3 * columns[2 * x], right = 3 * columns[2 * x + 1];
    const int32_t k_left = alphas[2 * x], k_right = alphas[2 * x + 1];
    for (int c = 0; c < 3; ++c) {
      const int32_t above = top[left + c] * k_left + top[right + c] * k_right;
      const int32_t below = bottom[left + c] * k_left + bottom[right + c] * k_right;
      out[3 * x + c] =
          static_cast<uint8_t>((above * beta_top + below * beta_bottom + (1 << 21)) >> 22);
    }
  }
}

}  // namespace
}  // namespace s4d
