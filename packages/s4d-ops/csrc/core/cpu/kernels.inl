// Included once per instruction set. Everything here has internal linkage and calls no inline
// function of the standard library: the linker must never pick this file's AVX-512 copy of a
// function that other code shares.
#include "aggregation_backward.inl"
#include "aggregation_forward.inl"
#include "image_loops.inl"
#include "kernels.h"

namespace s4d {
namespace {

template <class Storage, class Sum>
constexpr AggregationTable table() {
  using Forward = ForwardLoops<Storage, Sum>;
  using Backward = BackwardLoops<Storage, Sum>;
  return {&Forward::scratch_bytes, &Forward::forward, &Backward::backward_samples,
          &Backward::backward_features, &Forward::store};
}

}  // namespace

const KernelTables& S4D_KERNEL_TABLES() {
  static const KernelTables tables = {
      S4D_KERNEL_NAME,
      table<float, float>(),
      table<double, double>(),
      table<Half, float>(),
      table<BFloat16, float>(),
      {&horizontal_pass, &vertical_pass, &bilinear_row},
  };
  return tables;
}

}  // namespace s4d
