// Deformable aggregation, backward: gradients of locations and weights, then of the features.
#pragma once

#include "aggregation_sample.inl"

namespace s4d {
namespace {

template <class Storage, class Sum>
struct BackwardLoops : SampleReader<Storage, Sum> {
  using Base = SampleReader<Storage, Sum>;
  using typename Base::Row;
  using typename Base::Scratch;

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
      const Storage* given = static_cast<const Storage*>(args.grad_output) + item * s.channels;
      const Row* grad = Base::as_row(given, s, scratch, 4);
      for (int64_t point = 0; point < s.points; ++point) {
        for (int64_t view = 0; view < s.views; ++view) {
          const int64_t sample = (item * s.points + point) * s.views + view;
          const double x = load_scalar(args.location_type, args.locations, 2 * sample);
          const double y = load_scalar(args.location_type, args.locations, 2 * sample + 1);
          const bool counts = inside(x, y);
          if (counts) {
            Base::load_weights(args.weight_type, args.weights, sample * per_point, per_point,
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
            Base::neighbours(args, item / s.anchors, corners, scratch, rows);
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
          Base::load_weights(args.weight_type, args.weights, sample * per_point, per_point,
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
};

}  // namespace
}  // namespace s4d
