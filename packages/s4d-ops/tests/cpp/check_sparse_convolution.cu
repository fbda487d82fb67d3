#include <cstring>

#include "sparse_check.h"

namespace {

struct ConvolutionCase {
  int in, out;
  DType type;
  DType output = DType::f16;
  int residual = -1;  // DType or none
  cpu::Activation activation = cpu::Activation::relu;
  cpu::Axes kernel{3, 3, 3};
  size_t rows = 3001;
  bool rounding = false, transposed = false;
};

void check_convolution(const ConvolutionCase& c) {
  const size_t n = c.rows;
  const cpu::Grid g = n > 5000 ? cpu::Grid{3, {9, 90, 91}} : cpu::Grid{2, {9, 30, 31}};
  const auto rows = random_rows(g, n);
  const cpu::Geometry geo{c.kernel};
  const auto book = cpu::submanifold_rulebook(rows.data(), int64_t(n), g, geo, 1);
  const int volume = int(book.volume);
  const int depth = c.transposed ? c.out : c.in, width = c.transposed ? c.in : c.out;
  const bool int8 = c.type == DType::i8;
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> code(-127, 127);
  const auto draw = [&](DType type, size_t size, float factor = 1.0f) {
    std::vector<float> v(size);
    for (auto& x : v) {
      x = type == DType::i8 ? float(code(rng)) : normal(rng) * factor;
      if (type == DType::f16) x = to_half(x);
    }
    return v;
  };
  const auto x = draw(c.type, n * depth);
  const auto w = draw(c.type, size_t(c.out) * volume * c.in, 1 / std::sqrt(float(volume) * depth));
  const float in_range = 2.0f, out_range = 3.0f, residual_range = 4.0f;
  std::vector<float> bias = draw(DType::f32, width), channel(width), scale(width);
  for (int o = 0; o < width; ++o) {
    channel[o] = (0.2f + std::abs(normal(rng))) * 3 / std::sqrt(float(volume) * depth);
    scale[o] = float(double(channel[o]) / 127 * (double(in_range) / 127));
  }
  const DType residual = DType(c.residual);
  const auto r = c.residual >= 0 ? draw(residual, n * width) : std::vector<float>();

  // CPU
  std::vector<int8_t> wq(w.size()), xq(x.size()), rq(r.size());
  for (size_t i = 0; i < w.size(); ++i) wq[i] = int8_t(w[i]);
  for (size_t i = 0; i < x.size(); ++i) xq[i] = int8_t(x[i]);
  const cpu::PackedWeights packed =
      int8 ? cpu::PackedWeights(wq.data(), DType::i8, volume, c.in, c.out, channel.data(),
                                c.transposed)
           : cpu::PackedWeights(w.data(), DType::f32, volume, c.in, c.out, nullptr, c.transposed);
  std::vector<float> want(n * width), other(r);
  if (c.residual >= 0 && residual == DType::i8) {
    for (auto& v : other) v *= residual_range / 127.0f;
  }
  cpu::Convolution t;
  t.weights = &packed;
  t.table = book.table.data();
  t.out_rows = int64_t(n);
  t.input = int8 ? cpu::Features{xq.data(), DType::i8, in_range}
                 : cpu::Features{x.data(), DType::f32};
  t.bias = bias.data();
  t.activation = c.activation;
  if (c.residual >= 0) t.residual = cpu::Features{other.data(), DType::f32};
  if (c.rounding) t.sum_range = 2.0f;
  if (c.rounding) t.residual_range = 1.5f;
  t.output = cpu::Features{want.data(), DType::f32};
  cpu::convolve(t);

  // CUDA
  Array<float> d_bias(bias), d_scale(scale), d_w(w);
  Array<int8_t> d_wq(wq);
  Array<char> weight(dev::packed_weight_bytes(c.type, volume, depth, width));
  OK(dev::pack_weights(c.type, int8 ? static_cast<const void*>(d_wq) : d_w,
                       int8 ? DType::i8 : DType::f32, volume, c.in, c.out, c.transposed, weight,
                       0));
    const auto d_x = rows_of(c.type, x, n, depth);
  const auto d_r = rows_of(c.residual >= 0 ? residual : DType::f16, r,
                           c.residual >= 0 ? n : 0, width);
  Array<int32_t> d_table(book.table);
  const auto count = number(int64_t(n));
  Array<char> out(n * dev::padded_channels(c.output, width) * s4d::size_of(c.output));
  dev::ConvolutionTask u;
  u.type = c.type;
  u.features = d_x;
  u.in_channels = depth;
  u.out_channels = width;
  u.weight = weight;
  u.table = d_table;
  u.volume = volume;
  u.out_count = count;
  u.capacity = int64_t(n);
  u.scale = int8 ? d_scale.get() : nullptr;
  u.bias = d_bias;
  if (c.residual >= 0) u.residual = {d_r.get(), residual, residual_range};
  u.sum_range = t.sum_range;
  u.residual_range = t.residual_range;
  u.activation = c.activation;
  u.output = {out.get(), c.output, out_range};
  const bool split = c.type != DType::f32 && c.output == DType::f32 && width % 8 == 0;
  Array<__half> halves(split ? 2 * n * width : 0);
  if (split) u.halves = halves.get();
  OK(dev::convolve(u, 0));
  bool clean = true;
  const auto got = values_of(c.output, out, n, width, out_range, &clean);
  double worst = 0, top = 0;
  size_t steps = 0;  // values off by a rounding step of an int8 grid
  const float step = c.output == DType::i8 ? out_range / 127 : c.rounding ? 2.0f / 127 : 0.0f;
  for (size_t i = 0; i < got.size(); ++i) {
    float expected = want[i];
    if (c.output == DType::i8) expected = std::fmin(std::fmax(expected, -out_range), out_range);
    double error = std::abs(double(got[i]) - expected);
    if (!(error <= 1e30)) error = 1e30;
    if (c.output == DType::i8) error = std::fmax(0.0, error - step * 0.5001);
    if (c.rounding && error > 0.5 * step) {
      ++steps;
      error = std::fmax(0.0, error - (step + (c.output == DType::i8 ? step : 0) + 1.5f / 127));
    }
    worst = std::max(worst, error);
    top = std::max(top, double(std::abs(want[i])));
  }
  const double limit = c.output == DType::f32 || c.output == DType::i8 ? 2e-5 : 6e-4;
  char name[200];
  std::snprintf(name, sizeof name,
                "convolution %d->%d %s to %s, residual %d, kernel %dx%dx%d, %zu rows%s%s: worst "
                "%.3g of %.3g, steps %zu", c.in, c.out, s4d::name(c.type), s4d::name(c.output),
                c.residual, int(c.kernel[0]), int(c.kernel[1]), int(c.kernel[2]), n,
                c.rounding ? ", rounded" : "",
                c.transposed ? ", transposed" : "", worst, top, steps);
  expect(clean && worst <= limit * top && steps <= got.size() / 200, name);
  if (!split) return;
  // The same values as two halves each, with and without the floats.
  const auto first = halves.host();
  halves.fill(0xff);
  u.output.data = nullptr;
  OK(dev::convolve(u, 0));
  const auto second = halves.host();
  size_t wrong = std::memcmp(first.data(), second.data(), first.size() * sizeof(__half)) != 0;
  for (size_t i = 0; i < n * width; ++i) {
    const size_t at = i / width * 2 * width + i % width;
    const float high = __half2float(__float2half_rn(got[i]));
    wrong += __half2float(first[at]) != high ||
             __half2float(first[at + width]) != __half2float(__float2half_rn(got[i] - high));
  }
  std::snprintf(name, sizeof name, "halves of %d->%d %s: %zu wrong", c.in, c.out,
                s4d::name(c.type), wrong);
  expect(wrong == 0, name);
}

}  // namespace

void check_convolutions(bool brief) {
  using A = cpu::Activation;
  const size_t rows = brief ? 301 : 3001;
  const std::vector<int> widths = brief ? std::vector<int>{16, 64, 128}
                                        : std::vector<int>{16, 32, 64, 128};
  for (const DType type : {DType::f16, DType::i8, DType::f32}) {
    for (const int in : widths) {
      for (const int out : widths) {
        if (brief && in != out && in != 64) continue;
        check_convolution({in, out, type, DType::f16, out == 64 ? int(DType::f16) : -1, A::relu,
                           {3, 3, 3}, rows});
      }
    }
    for (const DType output : {DType::f32, DType::i8}) {
      check_convolution({32, 32, type, output, int(DType::i8), A::relu, {3, 3, 3}, rows});
      check_convolution({64, 16, type, output, int(DType::f32), A::none, {3, 1, 1}, rows});
      check_convolution({20, 48, type, output, -1, A::leaky_relu, {1, 3, 5}, rows});
    }
    check_convolution({5, 16, type, DType::f16, -1, A::relu, {3, 3, 3}, rows});
    check_convolution({24, 10, type, DType::f32, -1, A::sigmoid, {1, 1, 1}, rows});
    check_convolution({64, 64, type, DType::f16, int(DType::f16), A::relu, {3, 3, 3}, rows, true});
    check_convolution({48, 96, type, DType::f16, int(DType::i8), A::none, {3, 3, 3}, rows, true});
    check_convolution({16, 144, type, DType::f16, -1, A::relu, {3, 3, 3}, 200});
    check_convolution({96, 256, type, DType::f16, int(DType::f16), A::relu, {3, 3, 3}, 100});
    check_convolution({33, 17, type, DType::i8, -1, A::relu, {5, 5, 5}, 333});
    check_convolution({16, 16, type, DType::f32, -1, A::none, {7, 7, 7}, 90});
    check_convolution({128, 128, type, DType::f16, -1, A::relu, {3, 3, 3}, 1});
    if (!brief && type != DType::f32) {  // more rows than the device works on at once
      check_convolution({64, 64, type, DType::f16, int(DType::f16), A::relu, {3, 3, 3}, 70001});
      check_convolution({128, 128, type, DType::f16, int(DType::f16), A::relu, {3, 3, 3}, 40001});
      check_convolution({16, 16, type, DType::f16, int(DType::f16), A::relu, {3, 3, 3}, 150001});
    }
    if (type != DType::i8) {
      check_convolution({16, 64, type, DType::f32, -1, A::none, {3, 3, 3}, 777, false, true});
    }
  }
}
