#include "core/sparse_conv/gradient.h"
#include "sparse_check.h"

namespace {

void check_gradient(DType type, int in, int out, size_t n) {
  const cpu::Grid g{1, {9, 90, 91}};
  const auto rows = random_rows(g, n);
  const auto book = cpu::submanifold_rulebook(rows.data(), int64_t(n), g, {{3, 3, 3}}, 1);
  std::normal_distribution<float> normal;
  std::vector<float> x(n * in), y(n * out), want(size_t(out) * 27 * in);
  for (auto& v : x) v = to_half(normal(rng));
  for (auto& v : y) v = to_half(normal(rng));
  cpu::WeightGradient t;
  t.volume = 27;
  t.in_channels = in;
  t.out_channels = out;
  t.table = book.table.data();
  t.out_rows = int64_t(n);
  t.features = x.data();
  t.grad_output = y.data();
  t.grad_weight = want.data();
  cpu::weight_gradient(t);
  const auto d_x = rows_of(type, x, n, in), d_y = rows_of(type, y, n, out);
  Array<int32_t> table(book.table);
  const auto count = number(int64_t(n));
  Array<float> got(want.size());
  Array<char> scratch(dev::weight_gradient_bytes(27, in, out, int64_t(n)));
  OK(dev::weight_gradient({type, d_x, d_y, in, out, table, 27, count, int64_t(n), got, scratch},
                          0));
  const auto h = got.host();
  double error = 0, norm = 0;
  for (size_t i = 0; i < h.size(); ++i) {
    error += std::pow(double(h[i]) - want[i], 2);
    norm += std::pow(double(want[i]), 2);
  }
  expect(std::sqrt(error / norm) < 1e-5, "weight gradient " + std::to_string(in) + "->" +
                                             std::to_string(out) + ": " +
                                             std::to_string(std::sqrt(error / norm)));
}

}  // namespace

void check_gradients(bool brief) {
  check_gradient(DType::f32, 16, 32, brief ? 300 : 9000);
  check_gradient(DType::f16, 70, 5, 700);
}
