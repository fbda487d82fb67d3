// Deformable aggregation, forward: the loops over points, views, levels, groups and channels.
#pragma once

#include "aggregation_sample.inl"

namespace s4d {
namespace {

template <class Storage, class Sum>
struct ForwardLoops : SampleReader<Storage, Sum> {
  using Base = SampleReader<Storage, Sum>;
  using typename Base::Row;
  using typename Base::Scratch;

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
          Base::load_weights(args.weight_type, args.weights, sample * per_point, per_point,
                       scratch.weights);
          for (int64_t level = 0; level < s.levels; ++level) {
            const Corners corners(args.levels[view * s.levels + level], x, y);
            const Row* rows[4];
            Base::neighbours(args, item / s.anchors, corners, scratch, rows);
            const double fx = corners.fx, fy = corners.fy;
            const Sum k[4] = {static_cast<Sum>((1 - fx) * (1 - fy)),
                              static_cast<Sum>(fx * (1 - fy)), static_cast<Sum>((1 - fx) * fy),
                              static_cast<Sum>(fx * fy)};
            add_samples<Width>(rows, k, scratch.weights + level * s.groups, s.groups, width,
                               scratch.sums);
          }
        }
      }
      Base::store(scratch.sums, static_cast<Storage*>(args.output) + item * s.channels, s.channels);
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
};

}  // namespace
}  // namespace s4d
