// The inner loops, compiled once per instruction set, and the choice among them at run time.
#pragma once

#include <cstdint>

#include "../deformable_aggregation.h"

namespace s4d {

// One level of one view.
struct Level {
  int64_t start;  // first feature row
  int64_t height;
  int64_t width;
};

// Everything that the loops read, with the level table already checked and widened.
struct AggregationLoops {
  AggregationShape shape;
  DType location_type;
  DType weight_type;
  const Level* levels;  // (N, L)
  const void* features;
  const void* locations;
  const void* weights;
  void* output;             // forward
  const void* grad_output;  // backward
  void* grad_locations;     // may be null
  void* grad_weights;       // may be null
};

// Loops for one feature type. `items` are b * A + a. `scratch` belongs to the caller's thread and
// holds scratch_bytes() of the table, aligned to 64 bytes.
struct AggregationTable {
  int64_t (*scratch_bytes)(const AggregationShape& shape);
  void (*forward)(const AggregationLoops& args, int64_t first, int64_t last, void* scratch);
  // Gradients of locations and weights.
  void (*backward_samples)(const AggregationLoops& args, int64_t first, int64_t last,
                           void* scratch);
  // Adds the gradient of features of one batch item, channels [c0, c1), to `rows` (F, C), which
  // is float, or double for f64 features. Anchors are taken in order, so the sum is always the
  // same.
  void (*backward_features)(const AggregationLoops& args, int64_t batch, int64_t c0, int64_t c1,
                            void* rows, void* scratch);
  // Rounds `count` sums to the feature type.
  void (*store)(const void* sums, void* out, int64_t count);
};

// Passes of the image resize, see image_resize.cpp.
struct ImageTable {
  // Weighted sums along x. `src` points at the first of `rows` (<= 8) image rows, 3 bytes a pixel;
  // output column i is the sum over bounds[2i+1] source columns from bounds[2i] on with
  // coefficients[i * taps ...], in 22-bit fixed point. `scratch` holds 8 * 3 * src_width bytes.
  void (*horizontal)(const uint8_t* src, int64_t src_stride, int64_t rows, int64_t src_begin,
                     int64_t src_end, const int32_t* bounds, const int32_t* coefficients,
                     int64_t taps, int64_t out_width, uint8_t* out, int64_t out_stride,
                     uint8_t* scratch);
  // out[i] = sum over `count` rows of coefficients[k] * src[k * stride + i].
  void (*vertical)(const uint8_t* src, int64_t stride, int64_t count, const int32_t* coefficients,
                   int64_t bytes, uint8_t* out);
  // One row of 4-neighbour interpolation with 11-bit weights. `columns` and `alphas` hold two
  // source columns and their weights per output column; the result is written as 3 bytes a pixel.
  void (*bilinear)(const uint8_t* top, const uint8_t* bottom, int32_t beta_top,
                   int32_t beta_bottom, const int32_t* columns, const int32_t* alphas,
                   int64_t out_width, uint8_t* out);
};

struct KernelTables {
  const char* name;
  AggregationTable f32, f64, f16, bf16;
  ImageTable image;
};

// The tables for the best instruction set of this machine; S4D_CPU_CAPABILITY=baseline or avx2
// takes a lesser one.
const KernelTables& kernel_tables();

const KernelTables& kernel_tables_baseline();
#ifdef S4D_X86_VARIANTS
const KernelTables& kernel_tables_avx2();
const KernelTables& kernel_tables_avx512();
#endif

}  // namespace s4d
