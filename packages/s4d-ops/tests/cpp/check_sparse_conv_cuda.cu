// Standalone: device site maps, tables and convolutions against the CPU core; then the time of the
// whole CenterPoint encoder on a tensor file of voxels. Usage: check [indices.tensor]
#include <cstdio>
#include <cstdlib>
#include <cmath>
#include <fstream>
#include <numeric>
#include <random>
#include <set>
#include <vector>
#include <algorithm>
#include "core/sparse_conv/convolution_cuda.cuh"
#include "core/sparse_conv/layout_cuda.cuh"
#include "core/sparse_conv/site_map_cuda.cuh"
#include "core/sparse_conv/convolution.h"
#include "core/sparse_conv/coordinates.h"
#include "core/sparse_conv/rulebook.h"
namespace cpu = s4d::sparse;
namespace dev = s4d::sparse::cuda;
#define OK(x)                                                                   \
  do {                                                                          \
    cudaError_t e_ = (x);                                                       \
    if (e_ != cudaSuccess) {                                                    \
      printf("CUDA %s at %s:%d\n", cudaGetErrorString(e_), __FILE__, __LINE__); \
      exit(1);                                                                  \
    }                                                                           \
  } while (0)
size_t allocated = 0;
template <class T>
T* device(size_t n) {
  T* p;
  allocated += (n + 1) * sizeof(T);
  OK(cudaMalloc(&p, (n + 1) * sizeof(T)));
  OK(cudaMemset(p, 0, (n + 1) * sizeof(T)));
  return p;
}
template <class T>
T* upload(const std::vector<T>& v) {
  T* p = device<T>(v.size());
  OK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
template <class T>
std::vector<T> download(const T* p, size_t n) {
  std::vector<T> v(n);
  OK(cudaDeviceSynchronize());
  OK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return v;
}
dev::SiteMap make_map(dev::GridView g) {
  return {g, device<unsigned long long>(g.words()), device<int32_t>(g.words()), device<int32_t>(1)};
}
int32_t* scratch_for(const dev::GridView& g) {
  return device<int32_t>(g.words() / 1024 + 2);
}
std::vector<int32_t> random_rows(std::mt19937& rng, const cpu::Grid& g, size_t n) {
  std::set<int64_t> keys;
  std::uniform_int_distribution<int64_t> d(0, g.cells() - 1);
  while (keys.size() < n) keys.insert(d(rng));
  std::vector<int64_t> k(keys.begin(), keys.end());
  std::shuffle(k.begin(), k.end(), rng);
  std::vector<int32_t> r(4 * n);
  for (size_t i = 0; i < n; ++i) cpu::key_to_row(g, k[i], &r[4 * i]);
  return r;
}
int failures = 0;
void expect(bool good, const char* what) {
  if (!good) ++failures;
  printf("%-60s %s\n", what, good ? "ok" : "WRONG");
}
dev::GeometryView view(const cpu::Geometry& g, bool subm) {
  dev::GeometryView v;
  for (int a = 0; a < 3; ++a) {
    v.kernel[a] = g.kernel[a];
    v.dilation[a] = g.dilation[a];
    v.stride[a] = subm ? 1 : g.stride[a];
    v.padding[a] = subm ? g.kernel[a] / 2 * g.dilation[a] : g.padding[a];
  }
  return v;
}
void check_tables(std::mt19937& rng, cpu::Grid g, size_t n, cpu::Geometry geo) {
  auto rows = random_rows(rng, g, n);
  dev::GridView gv{int(g.batch), int(g.shape[0]), int(g.shape[1]), int(g.shape[2])};
  auto* d_rows = upload(rows);
  auto* d_count = upload(std::vector<int32_t>{int32_t(n)});
  auto* errors = device<int32_t>(2);
  auto in = make_map(gv);
  OK(dev::mark_rows(d_rows, d_count, n, in, errors, 0));
  OK(dev::rank_sites(in, scratch_for(gv), 0));
  auto* sorted = device<int32_t>(4 * n);
  OK(dev::list_sites(in, sorted, n, 0));
  auto* order = device<int32_t>(n);
  OK(dev::order_rows(d_rows, d_count, n, in, order, 0));
  auto h_sorted = download(sorted, 4 * n);
  auto h_order = download(order, n);
  auto err = download(errors, 2);
  auto ref = cpu::sort_rows(rows.data(), n, g);
  bool same = err[0] == 0 && err[1] == 0 && download(in.count, 1)[0] == int(n);
  for (size_t i = 0; i < n; ++i) {
    int32_t r[4];
    cpu::key_to_row(g, ref.keys[i], r);
    same &= std::equal(r, r + 4, &h_sorted[4 * i]) && h_order[i] == ref.rows[i];
  }
  expect(same, "sorted rows and order");
  auto book = cpu::submanifold_rulebook(h_sorted.data(), n, g, geo, 1);
  auto* table = device<int32_t>(book.table.size());
  OK(dev::build_table(sorted, in.count, n, in, view(geo, true), table, 0));
  expect(download(table, book.table.size()) == book.table, "submanifold table");
  auto sbook = cpu::strided_rulebook(h_sorted.data(), n, g, geo, 1);
  dev::GridView ov{int(g.batch), int(sbook.out_grid.shape[0]), int(sbook.out_grid.shape[1]),
                   int(sbook.out_grid.shape[2])};
  auto out = make_map(ov);
  OK(dev::mark_strided(sorted, in.count, n, out, view(geo, false), 0));
  OK(dev::rank_sites(out, scratch_for(ov), 0));
  const size_t m = sbook.out_rows;
  auto* out_rows = device<int32_t>(4 * m);
  OK(dev::list_sites(out, out_rows, m, 0));
  expect(download(out.count, 1)[0] == int(m) && download(out_rows, 4 * m) == sbook.out_indices,
         "strided output rows");
  auto* t2 = device<int32_t>(sbook.table.size());
  OK(dev::build_table(out_rows, out.count, m, in, view(geo, false), t2, 0));
  expect(download(t2, sbook.table.size()) == sbook.table, "strided table");
  std::vector<int32_t> bad(rows);
  bad[4] = 99;
  std::copy(&bad[8], &bad[12], &bad[12]);
  OK(cudaMemset(errors, 0, 8));
  OK(dev::mark_rows(upload(bad), d_count, n, in, errors, 0));
  err = download(errors, 2);
  expect(err[0] == 1 && err[1] >= 1, "outside and double rows counted");
}
void check_convolution(std::mt19937& rng, int cin, int cout, bool int8, bool residual) {
  cpu::Grid g{2, {9, 30, 31}};
  const size_t n = 3001;
  auto rows = random_rows(rng, g, n);
  auto book = cpu::submanifold_rulebook(rows.data(), n, g, cpu::Geometry{{3, 3, 3}}, 1);
  std::normal_distribution<float> d;
  std::uniform_int_distribution<int> q(-127, 127);
  std::vector<__half> xh(n * cin), wh(27 * cout * cin), rh(n * cout);
  std::vector<int8_t> xq(n * cin), wq(27 * cout * cin);
  std::vector<float> bias(cout), wf(27 * cout * cin), range(cout), scale(cout);
  for (auto& v : xh) v = __float2half(d(rng));
  for (auto& v : rh) v = __float2half(d(rng));
  for (auto& v : bias) v = d(rng);
  for (auto& v : xq) v = q(rng);
  for (auto& v : wq) v = q(rng);
  for (auto& v : range) v = 0.3f + std::abs(d(rng));
  const float in_range = 2.0f;
  for (int o = 0; o < cout; ++o)
    scale[o] = float(double(range[o]) / 127 * (double(in_range) / 127));
  for (auto& v : wh) v = __float2half(d(rng) / std::sqrt(27.0f * cin));
  // device (K, out, in) -> cpu (out, K, in)
  std::vector<float> wcpu(wf.size());
  std::vector<int8_t> wqcpu(wq.size());
  for (int k = 0; k < 27; ++k)
    for (int o = 0; o < cout; ++o)
      for (int i = 0; i < cin; ++i) {
        size_t a = (size_t(k) * cout + o) * cin + i, b = (size_t(o) * 27 + k) * cin + i;
        wcpu[b] = __half2float(wh[a]);
        wqcpu[b] = wq[a];
      }
  cpu::PackedWeights packed =
      int8 ? cpu::PackedWeights(wqcpu.data(), s4d::DType::i8, 27, cin, cout, range.data())
           : cpu::PackedWeights(wcpu.data(), s4d::DType::f32, 27, cin, cout);
  std::vector<float> want(n * cout);
  cpu::Convolution t;
  t.weights = &packed;
  t.table = book.table.data();
  t.out_rows = n;
  t.input = int8 ? cpu::Features{xq.data(), s4d::DType::i8, in_range}
                 : cpu::Features{xh.data(), s4d::DType::f16};
  t.bias = bias.data();
  t.activation = cpu::Activation::relu;
  if (residual) t.residual = cpu::Features{rh.data(), s4d::DType::f16};
  t.output = cpu::Features{want.data(), s4d::DType::f32};
  cpu::convolve(t);
  dev::ConvolutionTask u;
  u.int8 = int8;
  u.features = int8 ? (void*)upload(xq) : (void*)upload(xh);
  u.in_channels = cin;
  u.weight = int8 ? (void*)upload(wq) : (void*)upload(wh);
  u.out_channels = cout;
  u.table = upload(book.table);
  u.volume = 27;
  u.out_count = upload(std::vector<int32_t>{int32_t(n)});
  u.capacity = n;
  u.scale = int8 ? upload(scale) : nullptr;
  u.bias = upload(bias);
  u.residual = residual ? upload(rh) : nullptr;
  u.relu = true;
  auto* out = device<__half>(n * cout);
  u.output = out;
  OK(dev::convolve(u, 0));
  auto got = download(out, n * cout);
  double worst = 0, top = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, double(std::abs(__half2float(got[i]) - want[i])));
    top = std::max(top, double(std::abs(want[i])));
  }
  char text[99];
  snprintf(text, 99, "conv %d->%d %s%s, worst %.2g of %.2g", cin, cout, int8 ? "int8" : "half",
           residual ? " residual" : "", worst, top);
  expect(worst <= 1e-3 * top, text);
}
void time_network(const char* path, bool int8) {
  std::ifstream f(path, std::ios::binary);
  std::vector<int32_t> head(5);
  f.read((char*)head.data(), 20);
  const int n = head[3];
  std::vector<int32_t> rows(4 * size_t(n));
  f.read((char*)rows.data(), 16 * size_t(n));
  if (!f) {
    printf("no voxels at %s\n", path);
    return;
  }
  const size_t before = allocated;
  cudaStream_t s;
  OK(cudaStreamCreate(&s));
  dev::GridView grid[5] = {{1, 41, 1440, 1440},
                           {1, 21, 720, 720},
                           {1, 11, 360, 360},
                           {1, 5, 180, 180},
                           {1, 2, 180, 180}};
  const int cap[5] = {n, 69276, 29723, 10335, 7658}, width[5] = {16, 32, 64, 128, 128};
  dev::GeometryView subm{{3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}},
      down{{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}},
      down4{{3, 3, 3}, {2, 2, 2}, {0, 1, 1}, {1, 1, 1}},
      last{{3, 1, 1}, {2, 1, 1}, {0, 0, 0}, {1, 1, 1}};
  auto* d_rows = upload(rows);
  auto* count = upload(std::vector<int32_t>{n});
  auto* errors = device<int32_t>(2);
  auto* order = device<int32_t>(n);
  auto* feat = device<__half>(size_t(n) * 5);
  // Maps share one buffer per parity: a stage needs its own map and the one before.
  dev::SiteMap map[5];
  int32_t* sites[5];
  int32_t* table[5];
  int32_t* link[5];
  __half* x[5];
  __half* y[5];
  for (int i = 0; i < 5; ++i) {
    map[i] = make_map(grid[i]);
    sites[i] = device<int32_t>(4 * size_t(cap[i]));
    table[i] = i < 4 ? device<int32_t>(27 * size_t(cap[i])) : nullptr;
    link[i] = i ? device<int32_t>((i == 4 ? 3 : 27) * size_t(cap[i])) : nullptr;
    x[i] = device<__half>(size_t(cap[i]) * width[i]);
    y[i] = device<__half>(size_t(cap[i]) * width[i]);
  }
  auto* w = device<__half>(27 * 128 * 128);
  auto* ones = upload(std::vector<float>(128, 1e-3f));
  auto* dense = device<__half>(256 * 180 * 180);
  auto* scratch = scratch_for(grid[0]);
  auto conv = [&](const void* in, int cin, void* out, int level, const int32_t* t, int volume,
                  const void* res) {
    dev::ConvolutionTask u;
    u.int8 = int8 && cin >= 32;
    u.features = in;
    u.in_channels = cin;
    u.weight = w;
    u.out_channels = width[level];
    u.table = t;
    u.volume = volume;
    u.out_count = map[level].count;
    u.capacity = cap[level];
    u.scale = u.int8 ? ones : nullptr;
    u.bias = ones;
    u.residual = res;
    u.residual_int8 = u.int8;
    u.relu = true;
    u.output = out;
    u.output_int8 = int8 && width[level] >= 32 && level < 4;
    u.output_range = 1;
    OK(dev::convolve(u, s));
  };
  auto rulebooks = [&] {
    OK(cudaMemsetAsync(errors, 0, 8, s));
    OK(dev::mark_rows(d_rows, count, n, map[0], errors, s));
    OK(dev::rank_sites(map[0], scratch, s));
    OK(dev::list_sites(map[0], sites[0], n, s));
    OK(dev::order_rows(d_rows, count, n, map[0], order, s));
    for (int i = 1; i < 5; ++i) {
      auto g = i == 4 ? last : i == 3 ? down4 : down;
      OK(dev::mark_strided(sites[i - 1], map[i - 1].count, cap[i - 1], map[i], g, s));
      OK(dev::rank_sites(map[i], scratch, s));
      OK(dev::list_sites(map[i], sites[i], cap[i], s));
      OK(dev::build_table(sites[i], map[i].count, cap[i], map[i - 1], g, link[i], s));
    }
    for (int i = 0; i < 4; ++i)
      OK(dev::build_table(sites[i], map[i].count, cap[i], map[i], subm, table[i], s));
  };
  auto network = [&] {
    OK(dev::gather_rows(feat, order, count, n, 5, 16, y[0], s));
    conv(y[0], 16, x[0], 0, table[0], 27, nullptr);
    for (int i = 0; i < 4; ++i) {
      if (i) conv(x[i - 1], width[i - 1], x[i], i, link[i], 27, nullptr);
      for (int b = 0; b < 2; ++b) {
        conv(x[i], width[i], y[i], i, table[i], 27, nullptr);
        conv(y[i], width[i], x[i], i, table[i], 27, x[i]);
      }
    }
    conv(x[3], 128, x[4], 4, link[4], 3, nullptr);
    OK(dev::scatter_dense(x[4], sites[4], map[4].count, cap[4], 128, 1, 2, 180, 180, dense, s));
  };
  auto measure = [&](const char* name, auto&& body) {
    cudaGraph_t g;
    cudaGraphExec_t e;
    body();
    OK(cudaStreamSynchronize(s));
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    body();
    OK(cudaStreamEndCapture(s, &g));
    OK(cudaGraphInstantiate(&e, g, 0));
    std::vector<float> ms;
    cudaEvent_t a, b;
    OK(cudaEventCreate(&a));
    OK(cudaEventCreate(&b));
    for (int i = 0; i < 120; ++i) {
      OK(cudaEventRecord(a, s));
      OK(cudaGraphLaunch(e, s));
      OK(cudaEventRecord(b, s));
      OK(cudaEventSynchronize(b));
      float t;
      OK(cudaEventElapsedTime(&t, a, b));
      if (i >= 20) ms.push_back(t);
    }
    std::sort(ms.begin(), ms.end());
    printf("%-12s median %.3f ms  p90 %.3f\n", name, ms[50], ms[90]);
  };
  measure("rulebooks", rulebooks);
  measure("network", network);
  measure("all", [&] {
    rulebooks();
    network();
  });
  for (int i = 0; i < 5; ++i)
    printf("stage %d rows %d (buffer %d)\n", i + 1, download(map[i].count, 1)[0], cap[i]);
  printf("buffers %.1f MB (nothing shared yet)\n", (allocated - before) / 1e6);
}
int main(int argc, char** argv) {
  std::mt19937 rng(0);
  check_tables(rng, {2, {12, 40, 41}}, 5000, {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}});
  check_tables(rng, {1, {9, 33, 70}}, 700, {{3, 1, 1}, {2, 1, 1}, {0, 0, 0}, {1, 1, 1}});
  check_tables(rng, {3, {41, 300, 300}}, 20000, {{3, 3, 3}, {2, 2, 2}, {0, 1, 1}, {1, 1, 1}});
  for (int cin : {16, 32, 64, 128})
    for (int cout : {16, 32, 64, 128}) {
      check_convolution(rng, cin, cout, false, cout == 64);
      if (cin >= 32) check_convolution(rng, cin, cout, true, cout == 64);
    }
  printf("%d failures\n", failures);
  if (argc > 1) {
    printf("half\n");
    time_network(argv[1], false);
    printf("int8\n");
    time_network(argv[1], true);
  }
  return failures != 0;
}
