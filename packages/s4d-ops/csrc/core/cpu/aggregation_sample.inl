// Deformable aggregation: what its loops read of one sample.
#pragma once
#include <math.h>

#include "../half.h"
#include "kernels.h"

namespace s4d {
namespace {

constexpr int64_t kAlign = 64;

inline int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

inline double load_scalar(DType type, const void* data, int64_t i) {
  switch (type) {
    case DType::f64: return static_cast<const double*>(data)[i];
    case DType::f16: return widen(static_cast<const Half*>(data)[i]);
    case DType::bf16: return widen(static_cast<const BFloat16*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}

inline void store_scalar(DType type, void* data, int64_t i, double value) {
  switch (type) {
    case DType::f64: static_cast<double*>(data)[i] = value; break;
    case DType::f16: narrow(static_cast<float>(value), static_cast<Half*>(data) + i); break;
    case DType::bf16: narrow(static_cast<float>(value), static_cast<BFloat16*>(data) + i); break;
    default: static_cast<float*>(data)[i] = static_cast<float>(value);
  }
}

inline bool inside(double x, double y) { return x > 0.0 && x < 1.0 && y > 0.0 && y < 1.0; }

// The four neighbours of a sample. Coordinates are formed in double: an error of half a unit in
// the last place of a float at column 1000 would already be 3e-5 pixels.
struct Corners {
  int64_t row[4];  // top left, top right, bottom left, bottom right; -1 outside the map
  double fx, fy;   // 0..1, distance from the top left neighbour

  Corners(const Level& level, double x, double y) {
    const double px = x * static_cast<double>(level.width) - 0.5;
    const double py = y * static_cast<double>(level.height) - 0.5;
    const double left = ::floor(px), top = ::floor(py);
    fx = px - left;
    fy = py - top;
    const int64_t x0 = static_cast<int64_t>(left), y0 = static_cast<int64_t>(top);
    const bool has[4] = {y0 >= 0 && x0 >= 0, y0 >= 0 && x0 + 1 < level.width,
                         y0 + 1 < level.height && x0 >= 0,
                         y0 + 1 < level.height && x0 + 1 < level.width};
    const int64_t origin = level.start + y0 * level.width + x0;
    const int64_t rows[4] = {origin, origin + 1, origin + level.width, origin + level.width + 1};
    for (int k = 0; k < 4; ++k) row[k] = has[k] ? rows[k] : -1;
  }
};

// What the innermost loops read. Half rows are widened first: a loop over a whole row converts
// eight values at a time, which compilers do not find by themselves.
template <class Storage>
struct RowOf {
  using type = Storage;
  static constexpr bool widened = false;
};
template <>
struct RowOf<Half> {
  using type = float;
  static constexpr bool widened = true;
};

template <class Storage, class Sum>
struct SampleReader {
  using Row = typename RowOf<Storage>::type;
  static constexpr bool kWidened = RowOf<Storage>::widened;

  // Scratch: sums (C), a zero row (C), widened rows of four neighbours and of the output's
  // gradient (5 * C), weights of one point (L * G).
  struct Scratch {
    Sum* sums;
    Row* zeros;
    Row* wide;
    Sum* weights;

    Scratch(const AggregationShape& s, void* memory) {
      char* bytes = static_cast<char*>(memory);
      sums = reinterpret_cast<Sum*>(bytes);
      bytes += row_bytes<Sum>(s);
      zeros = reinterpret_cast<Row*>(bytes);
      bytes += row_bytes<Row>(s);
      wide = reinterpret_cast<Row*>(bytes);
      bytes += kWidened ? 5 * row_bytes<Row>(s) : 0;
      weights = reinterpret_cast<Sum*>(bytes);
      for (int64_t c = 0; c < s.channels; ++c) zeros[c] = Row{};
    }
  };

  template <class T>
  static int64_t row_bytes(const AggregationShape& s) {
    return padded(s.channels * static_cast<int64_t>(sizeof(T)));
  }

  static int64_t scratch_bytes(const AggregationShape& s) {
    return row_bytes<Sum>(s) + (kWidened ? 6 : 1) * row_bytes<Row>(s) +
           padded(s.levels * s.groups * static_cast<int64_t>(sizeof(Sum)));
  }

  // `from`, or its widened copy in slot `slot` of the scratch memory.
  static const Row* as_row(const Storage* from, const AggregationShape& s, const Scratch& scratch,
                           int slot) {
    if constexpr (kWidened) {
      Row* to = scratch.wide + slot * (row_bytes<Row>(s) / static_cast<int64_t>(sizeof(Row)));
      widen_row(from, to, s.channels);
      return to;
    } else {
      return from;
    }
  }

  static void load_weights(DType type, const void* data, int64_t first, int64_t count, Sum* out) {
    switch (type) {
      case DType::f64: {
        const double* from = static_cast<const double*>(data) + first;
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Sum>(from[i]);
        break;
      }
      case DType::f16: {
        const Half* from = static_cast<const Half*>(data) + first;
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Sum>(widen(from[i]));
        break;
      }
      case DType::bf16: {
        const BFloat16* from = static_cast<const BFloat16*>(data) + first;
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Sum>(widen(from[i]));
        break;
      }
      default: {
        const float* from = static_cast<const float*>(data) + first;
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Sum>(from[i]);
      }
    }
  }

  // Rows of the four neighbours; those outside the map are zero rows, so that a NaN elsewhere in
  // the features cannot leak in through a zero coefficient.
  static void neighbours(const AggregationLoops& args, int64_t batch, const Corners& corners,
                         const Scratch& scratch, const Row* rows[4]) {
    const Storage* base = static_cast<const Storage*>(args.features) +
                          batch * args.shape.rows * args.shape.channels;
    for (int k = 0; k < 4; ++k) {
      rows[k] = corners.row[k] < 0 ? scratch.zeros
                                   : as_row(base + corners.row[k] * args.shape.channels,
                                            args.shape, scratch, k);
    }
  }

  static void store(const void* sums, void* out, int64_t count) {
    const Sum* from = static_cast<const Sum*>(sums);
    Storage* to = static_cast<Storage*>(out);
    for (int64_t i = 0; i < count; ++i) narrow(from[i], to + i);
  }
};

}  // namespace
}  // namespace s4d
