#include "convolution.h"

#include <algorithm>
#include <vector>

#include "../parallel.h"
#include "epilogue.h"

namespace s4d::sparse {

namespace {

// The sums of one tile should stay in the second-level cache together with the gathered rows.
constexpr int64_t kTileBytes = 64 * 1024;

int64_t tile_rows(int64_t padded_columns, int64_t element) {
  return std::clamp<int64_t>(kTileBytes / (padded_columns * element), 48, 512);
}

// What differs between the arithmetics: type of the gathered values, of the sums, the kernel.
struct F32 {
  using Value = float;
  using Sum = float;
  static constexpr int64_t step = 1;
  static void multiply(const Kernels& kernels, const float* const* a, int64_t depth,
                       const char* w, float* const* c) {
    kernels.multiply_f32(a, depth, reinterpret_cast<const float*>(w), c);
  }
};

struct F64 {
  using Value = double;
  using Sum = double;
  static constexpr int64_t step = 1;
  static void multiply(const Kernels& kernels, const double* const* a, int64_t depth,
                       const char* w, double* const* c) {
    kernels.multiply_f64(a, depth, reinterpret_cast<const double*>(w), c);
  }
};

struct I8 {
  using Value = int16_t;
  using Sum = int32_t;
  static constexpr int64_t step = 2;  // the kernel counts pairs of channels
  static void multiply(const Kernels& kernels, const int16_t* const* a, int64_t depth,
                       const char* w, int32_t* const* c) {
    kernels.multiply_i8(a, depth, reinterpret_cast<const int8_t*>(w), c);
  }
};

template <class Arithmetic>
struct Workspace {
  std::vector<typename Arithmetic::Sum> sums;     // (rows + 1, padded columns); last row is scrap
  std::vector<typename Arithmetic::Value> values;  // gathered and converted rows
  std::vector<const typename Arithmetic::Value*> row;
  std::vector<int32_t> target;
  std::vector<float> line, other;
  std::vector<float> scale;
};

// Converts one input row for the kernel, or points at it where no conversion is needed.
const float* gather(const Convolution& task, const Kernels& kernels, int64_t row, float* scratch,
                    std::vector<float>&, F32) {
  const int64_t depth = task.weights->depth();
  if (task.input.type == DType::f32) {
    return static_cast<const float*>(task.input.data) + row * depth;
  }
  load_row(kernels, task.input, row, scratch, depth);
  return scratch;
}

const double* gather(const Convolution& task, const Kernels&, int64_t row, double*,
                     std::vector<float>&, F64) {
  return static_cast<const double*>(task.input.data) + row * task.weights->depth();
}

const int16_t* gather(const Convolution& task, const Kernels& kernels, int64_t row,
                      int16_t* scratch, std::vector<float>& line, I8) {
  const int64_t depth = task.weights->depth();
  if (task.input.type == DType::i8) {
    const int8_t* codes = static_cast<const int8_t*>(task.input.data) + row * depth;
    for (int64_t d = 0; d < depth; ++d) scratch[d] = codes[d];
  } else {
    load_row(kernels, task.input, row, line.data(), depth);
    kernels.round_codes(line.data(), 127.0f / task.input.range, depth);
    kernels.values_to_i16(line.data(), scratch, depth);
  }
  if (depth % 2) scratch[depth] = 0;
  return scratch;
}

template <class Arithmetic>
void sum_offset(const Convolution& task, const Kernels& kernels, int64_t k, int64_t begin,
                int64_t end, Workspace<Arithmetic>& work) {
  const PackedWeights& weights = *task.weights;
  const int64_t stride = weights.padded_depth();
  const int64_t columns = weights.padded_columns();
  const int32_t* inputs = task.table + k * task.out_rows;
  int64_t count = 0;
  for (int64_t o = begin; o < end; ++o) {
    if (inputs[o] < 0) continue;
    work.row[count] = gather(task, kernels, inputs[o], work.values.data() + count * stride,
                             work.line, Arithmetic{});
    work.target[count++] = static_cast<int32_t>(o - begin);
  }
  if (count == 0) return;
  const int32_t scrap = static_cast<int32_t>(work.sums.size() / columns - 1);
  for (; count % kTileRows; ++count) {  // fill the last group; its extra sums are thrown away
    work.row[count] = work.row[0];
    work.target[count] = scrap;
  }
  typename Arithmetic::Sum* to[kTileRows];
  for (int64_t panel = 0; panel < weights.panels(); ++panel) {
    const char* w = weights.panel(k, panel);
    for (int64_t first = 0; first < count; first += kTileRows) {
      for (int r = 0; r < kTileRows; ++r) {
        to[r] = work.sums.data() + work.target[first + r] * columns + panel * weights.width();
      }
      Arithmetic::multiply(kernels, work.row.data() + first, stride / Arithmetic::step, w, to);
    }
  }
}

void finish_row(const Convolution& task, const Kernels& kernels, int64_t o, float* line,
                std::vector<float>& other) {
  const int64_t n = task.weights->columns();
  if (task.bias) kernels.add(line, static_cast<const float*>(task.bias), n);
  quantise_and_restore(kernels, task.sum_range, line, n);
  if (task.residual.data) {
    load_row(kernels, task.residual, o, other.data(), n);
    quantise_and_restore(kernels, task.residual_range, other.data(), n);
    kernels.add(line, other.data(), n);
  }
  activate(kernels, task.activation, task.slope, line, n);
  store_row(kernels, line, task.output, o, n);
}

void finish(const Convolution& task, const Kernels& kernels, int64_t o, float* sums,
            Workspace<F32>& work) {
  finish_row(task, kernels, o, sums, work.other);
}

void finish(const Convolution& task, const Kernels& kernels, int64_t o, int32_t* sums,
            Workspace<I8>& work) {
  kernels.scale_sums(sums, work.scale.data(), work.line.data(), task.weights->columns());
  finish_row(task, kernels, o, work.line.data(), work.other);
}

void finish(const Convolution& task, const Kernels&, int64_t o, double* sums, Workspace<F64>&) {
  const int64_t n = task.weights->columns();
  const double* bias = static_cast<const double*>(task.bias);
  const double* residual = static_cast<const double*>(task.residual.data);
  for (int64_t i = 0; bias && i < n; ++i) sums[i] += bias[i];
  for (int64_t i = 0; residual && i < n; ++i) sums[i] += residual[o * n + i];
  activate(task.activation, task.slope, sums, n);
  std::memcpy(static_cast<double*>(const_cast<void*>(task.output.data)) + o * n, sums,
              sizeof(double) * n);
}

template <class Arithmetic>
void run(const Convolution& task) {
  const Kernels& kernels = cpu_kernels();
  const PackedWeights& weights = *task.weights;
  const int64_t columns = weights.padded_columns();
  const int64_t rows = tile_rows(columns, sizeof(typename Arithmetic::Sum));
  const int64_t tiles = (task.out_rows + rows - 1) / rows;
  parallel_for(tiles, 2, task.threads, [&](int64_t first, int64_t last) {
    Workspace<Arithmetic> work;
    work.sums.resize(static_cast<size_t>((rows + 1) * columns));
    work.values.resize(static_cast<size_t>((rows + kTileRows) * weights.padded_depth()));
    work.row.resize(static_cast<size_t>(rows + kTileRows));
    work.target.resize(static_cast<size_t>(rows + kTileRows));
    work.line.resize(static_cast<size_t>(std::max(weights.padded_depth(), columns)));
    work.other.resize(static_cast<size_t>(columns));
    for (float range : weights.channel_range()) {
      work.scale.push_back(static_cast<float>(double{range} / 127.0 *
                                              (double{task.input.range} / 127.0)));
    }
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * rows;
      const int64_t end = std::min(begin + rows, task.out_rows);
      std::fill(work.sums.begin(), work.sums.begin() + (end - begin) * columns,
                typename Arithmetic::Sum{0});
      for (int64_t k = 0; k < weights.volume(); ++k) {
        sum_offset(task, kernels, k, begin, end, work);
      }
      for (int64_t o = begin; o < end; ++o) {
        finish(task, kernels, o, work.sums.data() + (o - begin) * columns, work);
      }
    }
  });
}

}  // namespace

void convolve(const Convolution& task) {
  const DType type = task.weights->type();
  if (type == DType::f64) {
    const bool all = task.input.type == DType::f64 && task.output.type == DType::f64 &&
                     (!task.residual.data || task.residual.type == DType::f64);
    if (!all || task.sum_range > 0.0f || task.residual_range > 0.0f) {
      throw InvalidSparseInput(
          "float64 weights go with float64 features, residual and output, without quantisation");
    }
    return run<F64>(task);
  }
  check_features(task.input, "features", task.out_rows > 0);
  check_features(task.residual, "residual", false);
  check_features(task.output, "output", task.out_rows > 0);
  if (type == DType::f32) return run<F32>(task);
  if (task.weights->channel_range().empty()) {
    throw InvalidSparseInput("int8 weights need one range per output channel");
  }
  if (!(task.input.range > 0.0f && std::isfinite(task.input.range))) {
    throw InvalidSparseInput("an int8 convolution needs a positive finite range of its input");
  }
  run<I8>(task);
}

void add_features(const Features& a, float a_range, const Features& b, float b_range, int64_t count,
                  Activation activation, float slope, const Features& output, int threads) {
  check_features(a, "features", true);
  check_features(b, "residual", false);
  check_features(output, "output", true);
  const Kernels& kernels = cpu_kernels();
  constexpr int64_t block = 1024;
  parallel_for((count + block - 1) / block, 16, threads, [&](int64_t first, int64_t last) {
    float line[block];
    float other[block];
    for (int64_t index = first; index < last; ++index) {
      const int64_t begin = index * block;
      const int64_t n = std::min(block, count - begin);
      // Features of one long row: row number times row length must give the block's start.
      auto at = [&](const Features& from) {
        Features moved = from;
        moved.data = static_cast<const char*>(from.data) +
                     begin * static_cast<int64_t>(size_of(from.type));
        return moved;
      };
      load_row(kernels, at(a), 0, line, n);
      quantise_and_restore(kernels, a_range, line, n);
      if (b.data) {
        load_row(kernels, at(b), 0, other, n);
        quantise_and_restore(kernels, b_range, other, n);
        kernels.add(line, other, n);
      }
      activate(kernels, activation, slope, line, n);
      store_row(kernels, line, at(output), 0, n);
    }
  });
}

}  // namespace s4d::sparse
