#include "core/sparse_conv/dense.h"
#include "sparse_check.h"

namespace {

void check_layout(DType type, int channels, size_t n, bool unsorted, dev::GridView g,
                  const int32_t (&axes)[3]) {
  const cpu::Grid grid{g.batch, {g.a, g.b, g.c}};
  const auto rows = random_rows(grid, n);
  std::uniform_int_distribution<int> code(-127, 127);
  std::vector<float> x(n * channels);
  const float range = 127.0f;  // so that values are codes
  for (auto& v : x) v = float(code(rng));
  Array<int32_t> d_rows(rows), sorted(4 * n), order(n), errors(dev::kErrorSlots);
  errors.fill(0);
  const auto count = number(int64_t(n));
  Map map(g);
  dev::SiteLevel level;
  level.map = map.map;
  level.indices = sorted;
  level.capacity = int64_t(n);
  OK(dev::build_sites(d_rows, count, int64_t(n), &level, 1, false, errors, 0));
  Array<float> plain(x);
  const int stride = dev::padded_channels(type, channels);
  Array<char> placed(n * stride * s4d::size_of(type));
  dev::PlaceTask place{d_rows, count, int64_t(n), map.map, plain, DType::f32, channels,
                       placed, type, range, order};
  OK(dev::place_rows(place, 0));
  bool clean = true;
  auto sorted_values = values_of(type, placed, n, channels, range, &clean);
  const auto h_order = order.host();
  for (size_t i = 0; i < n; ++i) {
    for (int c = 0; c < channels; ++c) {
      clean &= sorted_values[i * channels + c] == x[size_t(h_order[i]) * channels + c];
    }
  }
  expect(clean, "placed rows of " + std::string(s4d::name(type)));
  // Back to the input's order: unpadded f32.
  Array<int32_t> inverse(n);
  std::vector<int32_t> h_inverse(n);
  for (size_t i = 0; i < n; ++i) h_inverse[size_t(h_order[i])] = int32_t(i);
  OK(cudaMemcpy(inverse, h_inverse.data(), 4 * n, cudaMemcpyHostToDevice));
  Array<float> back(n * channels);
  OK(dev::convert_rows({{placed.get(), type, range}, stride, inverse, count, int64_t(n), channels,
                        {back.get(), DType::f32}, channels}, 0));
  expect(back.host() == x, "rows converted back");
  const auto d_unsorted = rows_of(type, x, n, channels);
  for (const DType dense_type : {DType::f16, DType::f32}) {
    const size_t cells = size_t(channels) * size_t(grid.cells());
    Array<char> dense(cells * s4d::size_of(dense_type));
    dev::DenseTask task;
    task.map = map.map;
    task.order = unsorted ? order.get() : nullptr;
    task.capacity = int64_t(n);
    task.features = {unsorted ? d_unsorted.get() : placed.get(), type, range};
    task.stride = stride;
    task.channels = channels;
    std::copy(axes, axes + 3, task.axes);
    task.dense = dense;
    task.dense_type = dense_type;
    OK(dev::scatter_dense(task, 0));
    const auto raw = dense.host();
    dense.fill(0);
    task.cleared = true;
    OK(dev::scatter_dense(task, 0));
    expect(dense.host() == raw, "a dense map that was cleared before");
    std::vector<float> want(cells);
    cpu::scatter_dense(x.data(), rows.data(), int64_t(n),
                       {grid, {axes[0], axes[1], axes[2]}, channels}, 4, want.data(), 1);
    bool same = true;
    for (size_t i = 0; i < cells; ++i) {
      float v;
      if (dense_type == DType::f32) {
        std::memcpy(&v, &raw[i * 4], 4);
      } else {
        __half h;
        std::memcpy(&h, &raw[i * 2], 2);
        v = __half2float(h);
      }
      same &= v == want[i];
    }
    expect(same, std::string("dense ") + s4d::name(dense_type) + " from " + s4d::name(type));
    const int out_stride = dev::padded_channels(dense_type, channels);
    Array<char> gathered(n * out_stride * s4d::size_of(dense_type));
    OK(dev::gather_dense(dense, dense_type, d_rows, count, int64_t(n), g, axes, channels, gathered,
                         out_stride, 0));
    clean = true;
    expect(values_of(dense_type, gathered, n, channels, 0, &clean) == x && clean,
           "rows gathered from a dense map");
  }
  const auto d_b = rows_of(DType::f32, x, n, channels);
  Array<char> sum(n * dev::padded_channels(DType::f32, channels) * 4);
  OK(dev::add_rows({{d_unsorted.get(), type, range}, {d_b.get(), DType::f32}, 0, 0, count,
                    int64_t(n), channels, cpu::Activation::relu, 0, {sum.get(), DType::f32}}, 0));
  clean = true;
  const auto sums = values_of(DType::f32, sum, n, channels, 0, &clean);
  for (size_t i = 0; i < sums.size(); ++i) clean &= sums[i] == std::fmax(0.0f, 2 * x[i]);
  expect(clean, "rows added");
}

}  // namespace

void check_layouts() {
  const int32_t zyx[3] = {0, 1, 2}, xyz[3] = {2, 0, 1};
  check_layout(DType::f16, 5, 300, false, {2, 9, 20, 31}, zyx);
  check_layout(DType::f32, 70, 500, true, {1, 20, 33, 9}, xyz);
  check_layout(DType::i8, 33, 400, true, {3, 2, 18, 65}, zyx);
  check_layout(DType::f16, 128, 1, true, {1, 2, 18, 65}, zyx);
}
