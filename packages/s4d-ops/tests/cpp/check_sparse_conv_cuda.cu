// Standalone: every stage of sparse convolution on CUDA against the CPU core.
// Usage: check [points.fp16.bin]   (a cloud of five halves a point, 105 086 voxels expected)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <set>

#include "core/sparse_conv/coordinates.h"
#include "core/sparse_conv/dense.h"
#include "core/sparse_conv/gradient.h"
#include "core/sparse_conv/rulebook.h"
#include "core/sparse_conv/sparse_cuda.h"
#include "sparse_cuda_support.h"

namespace cpu = s4d::sparse;
namespace dev = s4d::sparse::cuda;
using s4d::DType;

namespace {

std::mt19937 rng(0);
int failures = 0, checks = 0;

void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("WRONG %s\n", what.c_str());
}

std::vector<int32_t> random_rows(const cpu::Grid& g, size_t n) {
  std::set<int64_t> keys;
  std::uniform_int_distribution<int64_t> d(0, g.cells() - 1);
  while (keys.size() < n) {
    // Half of the cells beside another one, so that there are neighbours.
    const int64_t key = d(rng);
    keys.insert(key);
    if (keys.size() < n && key + 1 < g.cells()) keys.insert(key + 1);
  }
  std::vector<int64_t> k(keys.begin(), keys.end());
  std::shuffle(k.begin(), k.end(), rng);
  std::vector<int32_t> r(4 * n);
  for (size_t i = 0; i < n; ++i) cpu::key_to_row(g, k[i], &r[4 * i]);
  return r;
}

dev::GridView view(const cpu::Grid& g) {
  return {int(g.batch), int(g.shape[0]), int(g.shape[1]), int(g.shape[2])};
}

dev::GeometryView view(const cpu::Geometry& g, bool submanifold) {
  dev::GeometryView v;
  for (int a = 0; a < 3; ++a) {
    v.kernel[a] = int(g.kernel[a]);
    v.dilation[a] = int(g.dilation[a]);
    v.stride[a] = submanifold ? 1 : int(g.stride[a]);
    v.padding[a] = int(submanifold ? g.kernel[a] / 2 * g.dilation[a] : g.padding[a]);
  }
  return v;
}

struct Map {
  Array<char> memory;
  Array<int32_t> count{1};
  dev::SiteMap map;
  explicit Map(dev::GridView g) : memory(dev::site_map_bytes(g)) {
    map = {g, memory.get(), count.get()};
  }
};

std::string text(const char* what, const cpu::Grid& g, size_t n, const cpu::Geometry& geo) {
  char s[200];
  std::snprintf(s, sizeof s, "%s, %d x %d x %d x %d, %zu rows, kernel %d%d%d stride %d%d%d", what,
                int(g.batch), int(g.shape[0]), int(g.shape[1]), int(g.shape[2]), n,
                int(geo.kernel[0]), int(geo.kernel[1]), int(geo.kernel[2]), int(geo.stride[0]),
                int(geo.stride[1]), int(geo.stride[2]));
  return s;
}

// A table with columns must be the plain one with its columns in another order.
bool same_table(const std::vector<int32_t>& got, const std::vector<int32_t>& columns,
                const std::vector<int32_t>& want, size_t n) {
  std::vector<char> seen(n, 0);
  for (size_t j = 0; j < n; ++j) {
    if (columns[j] < 0 || columns[j] >= int(n) || seen[columns[j]]) return false;
    seen[columns[j]] = 1;
    for (size_t k = 0; k < want.size() / n; ++k) {
      if (got[k * n + j] != want[k * n + columns[j]]) return false;
    }
  }
  return true;
}

void check_tables(const cpu::Grid& g, size_t n, const cpu::Geometry& geo) {
  const auto rows = random_rows(g, n);
  Array<int32_t> d_rows(rows), errors(dev::kErrorSlots), sorted(4 * n), order(n);
  auto d_count = number(int64_t(n));
  errors.fill(0);

  const auto book = cpu::strided_rulebook(rows.data(), int64_t(n), g, geo, 1);
  const size_t m = size_t(book.out_rows);
  Map in(view(g)), out(view(book.out_grid));
  Array<int32_t> out_rows(4 * m);
  dev::SiteLevel chain[2];
  chain[0].map = in.map;
  chain[0].indices = sorted;
  chain[0].capacity = int64_t(n);
  chain[1].map = out.map;
  chain[1].geometry = view(geo, false);
  chain[1].indices = out_rows;
  chain[1].capacity = int64_t(m);
  OK(dev::build_sites(d_rows, d_count, int64_t(n), chain, 2, false, errors, 0));
  dev::PlaceTask place;
  place.indices = d_rows;
  place.count = d_count;
  place.capacity = int64_t(n);
  place.map = in.map;
  place.order = order;
  OK(dev::place_rows(place, 0));
  const auto h_sorted = sorted.host(), h_order = order.host();
  const auto reference = cpu::sort_rows(rows.data(), int64_t(n), g);
  bool same = in.count.host()[0] == int(n);
  for (size_t i = 0; i < n; ++i) {
    int32_t r[4];
    cpu::key_to_row(g, reference.keys[i], r);
    same &= std::equal(r, r + 4, &h_sorted[4 * i]) && h_order[i] == reference.rows[i];
  }
  const auto none = std::vector<int32_t>(dev::kErrorSlots, 0);
  expect(same && errors.host() == none, text("sorted rows and order", g, n, geo));
  expect(out.count.host()[0] == int(m) && out_rows.host() == book.out_indices,
         text("strided rows in a chain", g, n, geo));

  Map alone(view(book.out_grid));
  Array<int32_t> alone_rows(4 * m);
  dev::SiteLevel level = chain[1];
  level.map = alone.map;
  level.indices = alone_rows;
  OK(dev::strided_sites(d_rows, d_count, int64_t(n), level, false, errors, 0));
  expect(alone_rows.host() == book.out_indices, text("strided rows alone", g, n, geo));

  const auto sub = cpu::submanifold_rulebook(rows.data(), int64_t(n), g, geo, 1);
  const auto sub_sorted = cpu::submanifold_rulebook(h_sorted.data(), int64_t(n), g, geo, 1);
  Array<int32_t> a(sub.table.size()), b(sub.table.size()), c(book.table.size()), d(sub.table.size());
  Array<int32_t> columns(n), link_columns(m), e(book.table.size());
  const auto subm = view(geo, true), strided = view(geo, false);
  const dev::TableTask tasks[] = {
      {d_rows, d_count, int64_t(n), in.map, order, subm, a},
      {sorted, in.count, int64_t(n), in.map, nullptr, subm, b},
      {out_rows, out.count, int64_t(m), in.map, order, strided, c},
      {sorted, in.count, int64_t(n), in.map, nullptr, subm, d, columns},
      {out_rows, out.count, int64_t(m), in.map, order, strided, e, link_columns}};
  OK(dev::build_tables(tasks, 5, 0));
  expect(a.host() == sub.table, text("submanifold table, unsorted rows", g, n, geo));
  expect(b.host() == sub_sorted.table, text("submanifold table", g, n, geo));
  expect(c.host() == book.table, text("strided table", g, n, geo));
  expect(same_table(d.host(), columns.host(), sub_sorted.table, n),
         text("submanifold table with columns", g, n, geo));
  expect(same_table(e.host(), link_columns.host(), book.table, m),
         text("strided table with columns", g, n, geo));

  const int volume = int(geo.volume());
  Array<int32_t> transposed(size_t(volume) * n);
  OK(dev::transpose_table(c, volume, out.count, int64_t(m), int64_t(n), transposed, errors, 0));
  OK(dev::check_table(c, volume, out.count, int64_t(m), d_count, errors, 0));
  expect(transposed.host() == cpu::transpose_table(book.table.data(), volume, int64_t(m),
                                                   int64_t(n), 1) && errors.host() == none,
         text("transposed table", g, n, geo));

  // Faults are counted.
  auto bad = rows;
  bad[4] = 99;
  if (n > 3) std::copy(&bad[8], &bad[12], &bad[12]);
  Array<int32_t> d_bad(bad);
  errors.fill(0);
  dev::SiteLevel small = chain[0];
  small.capacity = int64_t(n) / 2;
  OK(dev::build_sites(d_bad, d_count, int64_t(n), &small, 1, false, errors, 0));
  const auto counted = errors.host();
  expect(counted[dev::kRowsOutside] == (n > 1 ? 1 : 0) &&
             counted[dev::kRowsTwice] == (n > 3 ? 1 : 0) &&
             counted[dev::kRowsLost] == std::max(0, in.count.host()[0] - int(n) / 2),
         text("faults counted", g, n, geo));
}

float half(float x) { return __half2float(__float2half(x)); }

// Rows with their padding; `values` are exact in the type.
template <class T>
std::vector<T> padded(const std::vector<float>& values, size_t n, int channels, int stride) {
  std::vector<T> v(n * stride, T(0.0f));
  for (size_t i = 0; i < n; ++i) {
    for (int c = 0; c < channels; ++c) v[i * stride + c] = T(values[i * channels + c]);
  }
  return v;
}

Array<char> rows_of(DType type, const std::vector<float>& values, size_t n, int channels) {
  const int stride = dev::padded_channels(type, channels);
  const auto upload = [](const auto& v) {
    Array<char> a(v.size() * sizeof v[0]);
    OK(cudaMemcpy(a, v.data(), a.size(), cudaMemcpyHostToDevice));
    return a;
  };
  if (type == DType::i8) return upload(padded<int8_t>(values, n, channels, stride));
  if (type == DType::f32) return upload(padded<float>(values, n, channels, stride));
  std::vector<__half> v(n * stride, __float2half(0.0f));
  for (size_t i = 0; i < n; ++i) {
    for (int c = 0; c < channels; ++c) v[i * stride + c] = __float2half(values[i * channels + c]);
  }
  return upload(v);
}

// Rows back as float; false in `clean` where the padding is not zero.
std::vector<float> values_of(DType type, const Array<char>& rows, size_t n, int channels,
                             float range, bool* clean) {
  const int stride = dev::padded_channels(type, channels);
  const auto raw = rows.host();
  std::vector<float> v(n * channels);
  for (size_t i = 0; i < n; ++i) {
    for (int c = 0; c < stride; ++c) {
      float x;
      if (type == DType::f16) {
        __half h;
        std::memcpy(&h, &raw[(i * stride + c) * 2], 2);
        x = __half2float(h);
      } else if (type == DType::f32) {
        std::memcpy(&x, &raw[(i * stride + c) * 4], 4);
      } else {
        x = float(int8_t(raw[i * stride + c])) * (range / 127.0f);
      }
      if (c < channels) {
        v[i * channels + c] = x;
      } else {
        *clean &= x == 0.0f;
      }
    }
  }
  return v;
}

struct ConvolutionCase {
  int in, out;
  DType type;
  DType output = DType::f16;
  int residual = -1;  // DType or none
  cpu::Activation activation = cpu::Activation::relu;
  cpu::Axes kernel{3, 3, 3};
  size_t rows = 3001;
  bool rounding = false, grouped = false, transposed = false;
};

void check_convolution(const ConvolutionCase& c) {
  const cpu::Grid g{2, {9, 30, 31}};
  const size_t n = c.rows;
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
      if (type == DType::f16) x = half(x);
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
  auto table = book.table;
  std::vector<int32_t> columns;
  if (c.grouped) {
    columns.resize(n);
    std::iota(columns.begin(), columns.end(), 0);
    std::shuffle(columns.begin(), columns.end(), rng);
    for (size_t k = 0; k < size_t(volume); ++k) {
      for (size_t j = 0; j < n; ++j) table[k * n + j] = book.table[k * n + columns[j]];
    }
  }
  const auto d_x = rows_of(c.type, x, n, depth);
  const auto d_r = rows_of(c.residual >= 0 ? residual : DType::f16, r,
                           c.residual >= 0 ? n : 0, width);
  Array<int32_t> d_table(table), d_columns(columns);
  const auto count = number(int64_t(n));
  Array<char> out(n * dev::padded_channels(c.output, width) * s4d::size_of(c.output));
  dev::ConvolutionTask u;
  u.type = c.type;
  u.features = d_x;
  u.in_channels = depth;
  u.out_channels = width;
  u.weight = weight;
  u.table = d_table;
  u.columns = c.grouped ? d_columns.get() : nullptr;
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
                "convolution %d->%d %s to %s, residual %d, kernel %dx%dx%d, %zu rows%s%s%s: worst "
                "%.3g of %.3g, steps %zu", c.in, c.out, s4d::name(c.type), s4d::name(c.output),
                c.residual, int(c.kernel[0]), int(c.kernel[1]), int(c.kernel[2]), n,
                c.rounding ? ", rounded" : "", c.grouped ? ", columns" : "",
                c.transposed ? ", transposed" : "", worst, top, steps);
  expect(clean && worst <= limit * top && steps <= got.size() / 200, name);
}

void check_gradient(DType type, int in, int out, size_t n) {
  const cpu::Grid g{1, {9, 90, 91}};
  const auto rows = random_rows(g, n);
  const auto book = cpu::submanifold_rulebook(rows.data(), int64_t(n), g, {{3, 3, 3}}, 1);
  std::normal_distribution<float> normal;
  std::vector<float> x(n * in), y(n * out), want(size_t(out) * 27 * in);
  for (auto& v : x) v = half(normal(rng));
  for (auto& v : y) v = half(normal(rng));
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
    std::vector<float> want(cells);
    cpu::scatter_dense(x.data(), rows.data(), int64_t(n),
                       {grid, {axes[0], axes[1], axes[2]}, channels}, 4, want.data(), 1);
    const auto raw = dense.host();
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

void check_voxelize(const std::vector<float>& points, int channels, const cpu::VoxelRules& rules,
                    int64_t expected, bool halves, int clouds = 1) {
  const int64_t n = int64_t(points.size()) / channels;
  const auto want = cpu::voxelize(points.data(), n, channels, rules);
  const int64_t m = int64_t(want.kept.size()), rows = m * clouds;
  Array<float> d_points(points);
  std::vector<__half> h(points.size());
  for (size_t i = 0; i < h.size(); ++i) h[i] = __float2half(points[i]);
  Array<__half> d_halves(h);
  Array<char> workspace(dev::voxelize_bytes(rules, n));
  Array<int32_t> indices(4 * rows), kept(rows), total(rows), count(1), statistics(3),
      errors(dev::kErrorSlots);
  Array<float> means(rows * channels);
  const int padded = dev::padded_channels(DType::f16, channels);
  Array<__half> features(rows * padded);
  const auto point_count = number(n);
  errors.fill(0);
  count.fill(0);
  for (int cloud = 0; cloud < clouds; ++cloud) {
    dev::VoxelizeTask t;
    t.points = halves ? static_cast<const void*>(d_halves) : d_points;
    t.point_type = halves ? DType::f16 : DType::f32;
    t.channels = channels;
    t.point_count = point_count;
    t.point_capacity = n;
    t.rules = rules;
    t.batch = cloud;
    t.first_row = count;
    t.capacity = rows;
    t.indices = indices;
    t.means = means;
    t.features = features;
    t.kept = kept;
    t.total = total;
    t.count = count;
    t.statistics = statistics;
    t.workspace = workspace;
    t.errors = errors;
    OK(dev::voxelize(t, 0));
  }
  bool same = count.host()[0] == rows && errors.host()[dev::kRowsLost] == 0 &&
              (expected < 0 || m == expected);
  const auto h_indices = indices.host(), h_kept = kept.host(), h_total = total.host();
  const auto h_means = means.host();
  const auto h_features = features.host();
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t j = i % m;
    const int32_t* c = &want.cells[3 * j];
    const int32_t* r = &h_indices[4 * i];
    same &= r[0] == i / m && r[1] == c[2] && r[2] == c[1] && r[3] == c[0] &&
            h_kept[i] == want.kept[j] && h_total[i] == want.total[j];
    for (int k = 0; k < padded; ++k) {
      const float mean = k < channels ? want.means[j * channels + k] : 0.0f;
      if (k < channels) same &= h_means[i * channels + k] == mean;
      same &= __half2float(h_features[i * padded + k]) == half(mean);
    }
  }
  const auto s = statistics.host();
  same &= s[0] == want.refused_voxels && s[1] == want.refused_points && s[2] == want.outside_points;
  std::printf("voxelize %lld points, %lld voxels, %lld refused, %lld outside, max %lld a voxel: %s\n",
              static_cast<long long>(n), static_cast<long long>(m),
              static_cast<long long>(want.refused_voxels),
              static_cast<long long>(want.outside_points),
              static_cast<long long>(rules.max_points), same ? "bit-equal" : "WRONG");
  expect(same, "voxelize");
}

std::vector<float> random_points(size_t n) {
  std::normal_distribution<float> normal(0.0f, 20.0f);
  std::vector<float> p(n * 5);
  for (size_t i = 0; i < p.size(); ++i) p[i] = half(i % 5 == 2 ? normal(rng) / 10 : normal(rng));
  for (size_t i = 0; i + 5 < n; i += 97) p[5 * i] = NAN;
  // Crowded cells.
  for (size_t i = 0; i < n / 4; ++i) {
    for (int k = 0; k < 3; ++k) p[5 * (i * 4) + k] = half(1.01f + 0.2f * float(i % 5) * (k == 0));
  }
  return p;
}

cpu::VoxelRules nuscenes_rules(int64_t max_points, int64_t max_voxels) {
  return {{-54, -54, -5}, {54, 54, 3}, {0.075f, 0.075f, 0.2f}, {1440, 1440, 40}, max_points,
          max_voxels};
}

}  // namespace

int main(int argc, char** argv) {
  const bool brief = argc > 1 && std::string(argv[1]) == "--small";  // for compute-sanitizer
  using A = cpu::Activation;
  check_tables({2, {12, 40, 41}}, brief ? 500 : 5000, {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}});
  check_tables({1, {9, 33, 70}}, 700, {{3, 1, 1}, {2, 1, 1}, {0, 0, 0}, {1, 1, 1}});
  check_tables({1, {7, 13, 21}}, 1, {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}});
  check_tables({1, {31, 30, 29}}, 400, {{5, 3, 1}, {3, 1, 2}, {2, 1, 0}, {2, 1, 3}});
  check_tables({2, {9, 10, 11}}, 990, {{3, 1, 3}, {2, 1, 3}, {0, 0, 1}, {1, 1, 1}});
  check_tables({1, {8, 9, 97}}, 300, {{1, 1, 1}, {4, 4, 4}, {0, 0, 0}, {1, 1, 1}});
  if (!brief) {
    check_tables({3, {41, 300, 300}}, 20000, {{3, 3, 3}, {2, 2, 2}, {0, 1, 1}, {1, 1, 1}});
    check_tables({16, {41, 1440, 1440}}, 20000, {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}});
  }
  std::printf("tables: %d of %d checks failed\n", failures, checks);
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
      check_convolution({64, 16, type, output, int(DType::f32), A::none, {3, 1, 1}, rows, false,
                         true});
      check_convolution({20, 48, type, output, -1, A::leaky_relu, {1, 3, 5}, rows});
    }
    check_convolution({5, 16, type, DType::f16, -1, A::relu, {3, 3, 3}, rows});
    check_convolution({24, 10, type, DType::f32, -1, A::sigmoid, {1, 1, 1}, rows});
    check_convolution({64, 64, type, DType::f16, int(DType::f16), A::relu, {3, 3, 3}, rows, true});
    check_convolution({48, 96, type, DType::f16, int(DType::i8), A::none, {3, 3, 3}, rows, true,
                       true});
    check_convolution({16, 144, type, DType::f16, -1, A::relu, {3, 3, 3}, 200});
    check_convolution({96, 256, type, DType::f16, int(DType::f16), A::relu, {3, 3, 3}, 100});
    check_convolution({33, 17, type, DType::i8, -1, A::relu, {5, 5, 5}, 333});
    check_convolution({16, 16, type, DType::f32, -1, A::none, {7, 7, 7}, 90});
    check_convolution({128, 128, type, DType::f16, -1, A::relu, {3, 3, 3}, 1});
    if (type != DType::i8) {
      check_convolution({16, 64, type, DType::f32, -1, A::none, {3, 3, 3}, 777, false, false, true});
    }
  }
  std::printf("convolutions: %d of %d checks failed\n", failures, checks);
  check_gradient(DType::f32, 16, 32, brief ? 300 : 9000);
  check_gradient(DType::f16, 70, 5, 700);
  const int32_t zyx[3] = {0, 1, 2}, xyz[3] = {2, 0, 1};
  check_layout(DType::f16, 5, 300, false, {2, 9, 20, 31}, zyx);
  check_layout(DType::f32, 70, 500, true, {1, 20, 33, 9}, xyz);
  check_layout(DType::i8, 33, 400, true, {3, 2, 18, 65}, zyx);
  check_layout(DType::f16, 128, 1, true, {1, 2, 18, 65}, zyx);
  check_voxelize(random_points(brief ? 2000 : 60000), 5, nuscenes_rules(10, 0), -1, false);
  check_voxelize(random_points(brief ? 2000 : 60000), 5, nuscenes_rules(3, 700), -1, true, 3);
  check_voxelize(random_points(1), 5, nuscenes_rules(1, 0), -1, false);
  if (argc > 1 && !brief) {
    std::ifstream file(argv[1], std::ios::binary | std::ios::ate);
    std::vector<__half> h(file ? size_t(file.tellg()) / 2 : 0);
    file.seekg(0);
    file.read(reinterpret_cast<char*>(h.data()), std::streamsize(h.size() * 2));
    std::vector<float> p(h.size());
    for (size_t i = 0; i < p.size(); ++i) p[i] = __half2float(h[i]);
    check_voxelize(p, 5, nuscenes_rules(10, 160000), 105086, true);
    check_voxelize(p, 5, nuscenes_rules(5, 40000), 40000, false, 2);
  }
  std::printf("%d of %d checks failed\n", failures, checks);
  return failures != 0;
}
