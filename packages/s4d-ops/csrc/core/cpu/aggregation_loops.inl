// Deformable aggregation: the loops over points, views, levels, groups and channels.
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
struct Loops {
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

  // Width > 0: the number of channels of a group, known to the compiler.
  template <int Width>
  static void add_samples(const Row* const rows[4], const Sum k[4], const Sum* weights,
                          int64_t groups, int64_t width_in, Sum* __restrict sums) {
    const int64_t width = Width > 0 ? Width : width_in;
    for (int64_t g = 0; g < groups; ++g) {
      const Sum k0 = k[0] * weights[g], k1 = k[1] * weights[g];
      const Sum k2 = k[2] * weights[g], k3 = k[3] * weights[g];
      const Row* r0 = rows[0] + g * width;
      const Row* r1 = rows[1] + g * width;
      const Row* r2 = rows[2] + g * width;
      const Row* r3 = rows[3] + g * width;
      Sum* __restrict out = sums + g * width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        out[c] += k0 * widen(r0[c]) + k1 * widen(r1[c]) + k2 * widen(r2[c]) + k3 * widen(r3[c]);
      }
    }
  }

  template <int Width>
  static void forward_items(const AggregationLoops& args, int64_t first, int64_t last,
                            void* memory) {
    const AggregationShape& s = args.shape;
    const Scratch scratch(s, memory);
    const int64_t width = s.channels / s.groups, per_point = s.levels * s.groups;
    for (int64_t item = first; item < last; ++item) {
      for (int64_t c = 0; c < s.channels; ++c) scratch.sums[c] = 0;
      for (int64_t view = 0; view < s.views; ++view) {
        for (int64_t point = 0; point < s.points; ++point) {
          const int64_t sample = (item * s.points + point) * s.views + view;
          const double x = load_scalar(args.location_type, args.locations, 2 * sample);
          const double y = load_scalar(args.location_type, args.locations, 2 * sample + 1);
          if (!inside(x, y)) continue;
          load_weights(args.weight_type, args.weights, sample * per_point, per_point,
                       scratch.weights);
          for (int64_t level = 0; level < s.levels; ++level) {
            const Corners corners(args.levels[view * s.levels + level], x, y);
            const Row* rows[4];
            neighbours(args, item / s.anchors, corners, scratch, rows);
            const double fx = corners.fx, fy = corners.fy;
            const Sum k[4] = {static_cast<Sum>((1 - fx) * (1 - fy)),
                              static_cast<Sum>(fx * (1 - fy)), static_cast<Sum>((1 - fx) * fy),
                              static_cast<Sum>(fx * fy)};
            add_samples<Width>(rows, k, scratch.weights + level * s.groups, s.groups, width,
                               scratch.sums);
          }
        }
      }
      store(scratch.sums, static_cast<Storage*>(args.output) + item * s.channels, s.channels);
    }
  }

  static void forward(const AggregationLoops& args, int64_t first, int64_t last, void* scratch) {
    switch (args.shape.channels / args.shape.groups) {
      case 8: return forward_items<8>(args, first, last, scratch);
      case 16: return forward_items<16>(args, first, last, scratch);
      case 32: return forward_items<32>(args, first, last, scratch);
      case 64: return forward_items<64>(args, first, last, scratch);
      default: return forward_items<0>(args, first, last, scratch);
    }
  }

  // Products of the output's gradient with each of the four neighbours, over one group.
  template <int Width>
  static void dot(const Row* const rows[4], const Row* grad, int64_t offset,
                  int64_t width_in, Sum out[4]) {
    const int64_t width = Width > 0 ? Width : width_in;
    const Row* r0 = rows[0] + offset;
    const Row* r1 = rows[1] + offset;
    const Row* r2 = rows[2] + offset;
    const Row* r3 = rows[3] + offset;
    const Row* go = grad + offset;
    Sum d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
    for (int64_t c = 0; c < width; ++c) {
      const Sum value = widen(go[c]);
      d0 += value * widen(r0[c]);
      d1 += value * widen(r1[c]);
      d2 += value * widen(r2[c]);
      d3 += value * widen(r3[c]);
    }
    out[0] = d0, out[1] = d1, out[2] = d2, out[3] = d3;
  }

  template <int Width>
  static void sample_items(const AggregationLoops& args, int64_t first, int64_t last,
                           void* memory) {
    const AggregationShape& s = args.shape;
    const Scratch scratch(s, memory);
    const int64_t width = s.channels / s.groups, per_point = s.levels * s.groups;
    for (int64_t item = first; item < last; ++item) {
      const Row* grad = as_row(static_cast<const Storage*>(args.grad_output) + item * s.channels, s,
                               scratch, 4);
      for (int64_t point = 0; point < s.points; ++point) {
        for (int64_t view = 0; view < s.views; ++view) {
          const int64_t sample = (item * s.points + point) * s.views + view;
          const double x = load_scalar(args.location_type, args.locations, 2 * sample);
          const double y = load_scalar(args.location_type, args.locations, 2 * sample + 1);
          const bool counts = inside(x, y);
          if (counts) {
            load_weights(args.weight_type, args.weights, sample * per_point, per_point,
                         scratch.weights);
          }
          double grad_x = 0, grad_y = 0;
          for (int64_t level = 0; level < s.levels; ++level) {
            const int64_t slot = sample * per_point + level * s.groups;
            if (!counts) {
              for (int64_t g = 0; args.grad_weights && g < s.groups; ++g) {
                store_scalar(args.weight_type, args.grad_weights, slot + g, 0.0);
              }
              continue;
            }
            const Level& map = args.levels[view * s.levels + level];
            const Corners corners(map, x, y);
            const Row* rows[4];
            neighbours(args, item / s.anchors, corners, scratch, rows);
            const double fx = corners.fx, fy = corners.fy;
            double along_x = 0, along_y = 0;
            for (int64_t g = 0; g < s.groups; ++g) {
              Sum d[4];
              dot<Width>(rows, grad, g * width, width, d);
              const double top = (1 - fx) * d[0] + fx * d[1];
              const double bottom = (1 - fx) * d[2] + fx * d[3];
              if (args.grad_weights) {
                store_scalar(args.weight_type, args.grad_weights, slot + g,
                             (1 - fy) * top + fy * bottom);
              }
              const double weight = scratch.weights[level * s.groups + g];
              along_x += weight * ((1 - fy) * (static_cast<double>(d[1]) - d[0]) +
                                   fy * (static_cast<double>(d[3]) - d[2]));
              along_y += weight * (bottom - top);
            }
            grad_x += along_x * static_cast<double>(map.width);
            grad_y += along_y * static_cast<double>(map.height);
          }
          if (args.grad_locations) {
            store_scalar(args.location_type, args.grad_locations, 2 * sample, grad_x);
            store_scalar(args.location_type, args.grad_locations, 2 * sample + 1, grad_y);
          }
        }
      }
    }
  }

  static void backward_samples(const AggregationLoops& args, int64_t first, int64_t last,
                               void* scratch) {
    switch (args.shape.channels / args.shape.groups) {
      case 8: return sample_items<8>(args, first, last, scratch);
      case 16: return sample_items<16>(args, first, last, scratch);
      case 32: return sample_items<32>(args, first, last, scratch);
      case 64: return sample_items<64>(args, first, last, scratch);
      default: return sample_items<0>(args, first, last, scratch);
    }
  }

  static void backward_features(const AggregationLoops& args, int64_t batch, int64_t c0,
                                int64_t c1, void* rows, void* memory) {
    const AggregationShape& s = args.shape;
    const Scratch scratch(s, memory);
    const int64_t width = s.channels / s.groups, per_point = s.levels * s.groups;
    const int64_t count = c1 - c0;
    Sum* const target = static_cast<Sum*>(rows) + c0;
    Sum* const weighted = scratch.sums;
    for (int64_t item = batch * s.anchors; item < (batch + 1) * s.anchors; ++item) {
      const Storage* grad = static_cast<const Storage*>(args.grad_output) + item * s.channels + c0;
      for (int64_t view = 0; view < s.views; ++view) {
        for (int64_t point = 0; point < s.points; ++point) {
          const int64_t sample = (item * s.points + point) * s.views + view;
          const double x = load_scalar(args.location_type, args.locations, 2 * sample);
          const double y = load_scalar(args.location_type, args.locations, 2 * sample + 1);
          if (!inside(x, y)) continue;
          load_weights(args.weight_type, args.weights, sample * per_point, per_point,
                       scratch.weights);
          for (int64_t level = 0; level < s.levels; ++level) {
            const Sum* weights = scratch.weights + level * s.groups;
            for (int64_t c = 0; c < count;) {  // one group, or the part of it that is ours
              const int64_t group = (c0 + c) / width;
              const int64_t end = (group + 1) * width - c0;
              for (const int64_t stop = end < count ? end : count; c < stop; ++c) {
                weighted[c] = weights[group] * widen(grad[c]);
              }
            }
            const Corners corners(args.levels[view * s.levels + level], x, y);
            const double fx = corners.fx, fy = corners.fy;
            const Sum k[4] = {static_cast<Sum>((1 - fx) * (1 - fy)),
                              static_cast<Sum>(fx * (1 - fy)), static_cast<Sum>((1 - fx) * fy),
                              static_cast<Sum>(fx * fy)};
            for (int corner = 0; corner < 4; ++corner) {
              if (corners.row[corner] < 0) continue;
              Sum* __restrict out = target + corners.row[corner] * s.channels;
              const Sum factor = k[corner];
#pragma omp simd
              for (int64_t c = 0; c < count; ++c) out[c] += factor * weighted[c];
            }
          }
        }
      }
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
