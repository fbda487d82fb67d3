#include "gradient.h"

#include <algorithm>
#include <vector>

#include "../parallel.h"
#include "geometry.h"
#include "kernels.h"

namespace s4d::sparse {

namespace {

// Pairs gathered at a time: both blocks stay in the second-level cache.
constexpr int64_t kBlock = 256;

void multiply(const Kernels& kernels, const float* const* a, int64_t depth, const float* w,
              float* const* c) {
  kernels.multiply_f32(a, depth, w, c);
}

void multiply(const Kernels& kernels, const double* const* a, int64_t depth, const double* w,
              double* const* c) {
  kernels.multiply_f64(a, depth, w, c);
}

// One offset: sums (in, out) += features^T * grad_output over its pairs. The features are gathered
// transposed, so the register kernel runs along the pairs.
template <class T>
class OffsetGradient {
 public:
  OffsetGradient(const WeightGradient& task, int64_t width)
      : task_(task),
        width_(width),
        in_padded_((task.in_channels + kTileRows - 1) / kTileRows * kTileRows),
        out_padded_((task.out_channels + width - 1) / width * width),
        sums_(static_cast<size_t>(in_padded_ * out_padded_)),
        left_(static_cast<size_t>(in_padded_ * kBlock)),
        right_(static_cast<size_t>(out_padded_ * kBlock)) {}

  void run(int64_t k) {
    std::fill(sums_.begin(), sums_.end(), T{0});
    const int32_t* inputs = task_.table + k * task_.out_rows;
    int64_t count = 0;
    for (int64_t o = 0; o < task_.out_rows; ++o) {
      if (inputs[o] < 0) continue;
      take(inputs[o], o, count++);
      if (count == kBlock) {
        flush(count);
        count = 0;
      }
    }
    if (count) flush(count);
    T* result = static_cast<T*>(task_.grad_weight);
    for (int64_t o = 0; o < task_.out_channels; ++o) {
      for (int64_t i = 0; i < task_.in_channels; ++i) {
        result[(o * task_.volume + k) * task_.in_channels + i] = sums_[i * out_padded_ + o];
      }
    }
  }

 private:
  void take(int64_t in_row, int64_t out_row, int64_t place) {
    const T* x = static_cast<const T*>(task_.features) + in_row * task_.in_channels;
    for (int64_t i = 0; i < task_.in_channels; ++i) left_[i * kBlock + place] = x[i];
    const T* g = static_cast<const T*>(task_.grad_output) + out_row * task_.out_channels;
    for (int64_t o = 0; o < task_.out_channels; ++o) {
      right_[(o / width_ * kBlock + place) * width_ + o % width_] = g[o];
    }
  }

  void flush(int64_t count) {
    const Kernels& kernels = cpu_kernels();
    const T* rows[kTileRows];
    T* to[kTileRows];
    for (int64_t panel = 0; panel < out_padded_ / width_; ++panel) {
      for (int64_t first = 0; first < in_padded_; first += kTileRows) {
        for (int r = 0; r < kTileRows; ++r) {
          rows[r] = left_.data() + (first + r) * kBlock;
          to[r] = sums_.data() + (first + r) * out_padded_ + panel * width_;
        }
        multiply(kernels, rows, count, right_.data() + panel * kBlock * width_, to);
      }
    }
  }

  const WeightGradient& task_;
  int64_t width_, in_padded_, out_padded_;
  std::vector<T> sums_, left_, right_;
};

template <class T>
void run(const WeightGradient& task, int64_t width) {
  parallel_for(task.volume, 1, task.threads, [&](int64_t begin, int64_t end) {
    OffsetGradient<T> offset(task, width);
    for (int64_t k = begin; k < end; ++k) offset.run(k);
  });
}

}  // namespace

void weight_gradient(const WeightGradient& task) {
  switch (task.type) {
    case DType::f32: return run<float>(task, cpu_kernels().width_f32);
    case DType::f64: return run<double>(task, cpu_kernels().width_f64);
    default:
      throw InvalidSparseInput(
          std::string("expected float32 or float64 for the gradient of the weights, got ") +
          name(task.type));
  }
}

}  // namespace s4d::sparse
