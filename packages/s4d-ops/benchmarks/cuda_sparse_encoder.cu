// CenterPoint's sparse encoder on a GPU: time per stage and layer, scaling, and a soak test.
// Usage: encoder VOXELS.tensor [time] [layers] [tune] [scale] [soak FRAMES]
// VOXELS.tensor: int32 index rows batch z y x of a 41 x 1440 x 1440 grid. Weights are random.
#include <algorithm>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <thread>

#include "../tests/cpp/sparse_encoder.h"
#include "core/sparse_conv/convolution_launch.h"
#include "sparse_rows.h"

namespace {

std::mt19937 rng(1);
cudaStream_t stream;

struct Graph {
  cudaGraphExec_t run = nullptr;
  explicit Graph(const std::function<void()>& body) {
    cudaGraph_t graph;
    body();
    OK(cudaStreamSynchronize(stream));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    body();
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&run, graph, 0));
    OK(cudaGraphDestroy(graph));
  }
  ~Graph() { cudaGraphExecDestroy(run); }
};

// Median microseconds of graph replays, and the 90th percentile.
std::pair<double, double> measure(const std::function<void()>& body, int runs = 100, int calls = 1) {
  Graph graph([&] {
    for (int i = 0; i < calls; ++i) body();
  });
  cudaEvent_t a, b;
  OK(cudaEventCreate(&a));
  OK(cudaEventCreate(&b));
  std::vector<float> ms;
  for (int i = 0; i < runs + runs / 5; ++i) {
    OK(cudaEventRecord(a, stream));
    OK(cudaGraphLaunch(graph.run, stream));
    OK(cudaEventRecord(b, stream));
    OK(cudaEventSynchronize(b));
    float t;
    OK(cudaEventElapsedTime(&t, a, b));
    if (i >= runs / 5) ms.push_back(t);
  }
  OK(cudaEventDestroy(a));
  OK(cudaEventDestroy(b));
  std::sort(ms.begin(), ms.end());
  return {1e3 * ms[ms.size() / 2] / calls, 1e3 * ms[ms.size() * 9 / 10] / calls};
}

std::vector<__half> random_features(size_t n) {
  std::normal_distribution<float> normal;
  std::vector<__half> f(n * 5);
  for (auto& x : f) x = __float2half(normal(rng));
  return f;
}

std::vector<int64_t> capacities(const std::vector<int32_t>& counts) {
  return {counts.begin(), counts.begin() + 5};
}

void time_stages(const std::vector<int32_t>& rows, bool layers) {
  const int64_t n = int64_t(rows.size()) / 4;
  const auto counts = count_sites(rows.data(), size_t(n));
  Array<int32_t> d_rows(rows);
  Array<__half> features(random_features(size_t(n)));
  const auto count = number(n);
  for (const bool int8 : {false, true}) {
    size_t free_before, free_after, total;
    OK(cudaMemGetInfo(&free_before, &total));
    Encoder e(int8, 1, capacities(counts));
    OK(cudaMemGetInfo(&free_after, &total));
    const auto run = [&](int stage) {
      return [&, stage] { e.stage(stage, d_rows, features, count, n, stream); };
    };
    const auto whole = [&] { e.enqueue(d_rows, features, count, n, stream); };
    const auto all = measure(whole);
    const auto again = measure(whole);
    bool right = e.errors() == std::vector<int32_t>(dev::kErrorSlots, 0);
    std::printf("%s: whole encoder %.1f us (p90 %.1f; again %.1f)\n", int8 ? "int8" : "fp16",
                all.first, all.second, again.first);
    const char* names[] = {"clear", "sites", "tables", "place", "network", "dense"};
    for (int i = 0; i < 6; ++i) std::printf("  %s %.1f", names[i], measure(run(i), 40, 8).first);
    std::printf("\n  ");
    e.megabytes(true);
    std::printf("  sum %.1f MB, allocated %.1f MB with voxels %.1f\n", e.megabytes(),
                double(free_before - free_after) / 1e6, double(n) * 26 / 1e6);
    const auto got = e.counts();
    for (int i = 0; i < 5; ++i) right &= got[i] == counts[i];
    std::printf("  counts %d %d %d %d %d %s\n", got[0], got[1], got[2], got[3], got[4],
                right ? "right" : "WRONG");
    if (!layers) continue;
    int number_of_layer = 0;
    for (const auto& layer : e.layers()) {
      const double us = measure([&] { OK(dev::convolve(layer, stream)); }, 30, 10).first;
      std::printf("  layer %2d %s %3d->%3d rows %6ld: %.1f us\n", number_of_layer++,
                  s4d::name(layer.type), layer.in_channels, layer.out_channels,
                  long(layer.capacity), us);
    }
  }
}

void tune(const std::vector<int32_t>& rows) {
  const int64_t n = int64_t(rows.size()) / 4;
  const auto counts = count_sites(rows.data(), size_t(n));
  Array<int32_t> d_rows(rows);
  Array<__half> features(random_features(size_t(n)));
  const auto count = number(n);
  for (const bool int8 : {false, true}) {
    Encoder e(int8, 1, capacities(counts));
    e.enqueue(d_rows, features, count, n, stream);
    OK(cudaStreamSynchronize(stream));
    std::set<std::string> seen;
    for (const auto& layer : e.layers()) {
      char name[100];
      std::snprintf(name, sizeof name, "%s %d->%d of %ld, volume %d", s4d::name(layer.type),
                    layer.in_channels, layer.out_channels, long(layer.capacity), layer.volume);
      if (!seen.insert(name).second) continue;
      if (dev::wgmma_serves(layer.type, layer.volume, layer.in_channels, layer.out_channels)) continue;
      std::vector<std::pair<double, std::string>> results;
      for (const int tiles : {1, 2}) {
        if (layer.out_channels % 64 != 0 && tiles == 1) continue;
        for (const int warps : {4, 6, 8, 10, 12, 16}) {
          for (const int blocks : {1, 2, 3, 4}) {
            for (const int stage : {8192, 16384, 32768, 0}) {
              const dev::TileChoice choice{tiles, warps, blocks, stage ? stage : 16384, stage == 0};
              if (dev::convolve_tiles(layer, choice, stream) != cudaSuccess) {
                cudaGetLastError();
                continue;
              }
              const double us = measure([&] { OK(dev::convolve_tiles(layer, choice, stream)); }, 8,
                                        5).first;
              char text[100];
              std::snprintf(text, sizeof text, "%.1f(t%d w%d b%d %s%d)", us, tiles, warps, blocks,
                            stage ? "s" : "R", stage / 1024);
              results.push_back({us, text});
            }
          }
        }
      }
      std::sort(results.begin(), results.end());
      std::printf("%s: default %.1f; best", name,
                  measure([&] { OK(dev::convolve(layer, stream)); }, 8, 5).first);
      for (size_t i = 0; i < results.size() && i < 7; ++i) std::printf(" %s", results[i].second.c_str());
      std::printf("\n");
    }
  }
}

void scale(const std::vector<int32_t>& real) {
  std::printf("| voxels | batch | sites of level 2 | fp16 us | int8 us | fp16 MB | int8 MB |\n");
  const auto line = [&](size_t n, int batch) {
    std::vector<int32_t> rows, counts(5);
    for (int b = 0; b < batch; ++b) {
      auto part = shuffled(n <= real.size() / 4 ? real : grow(real, n), rng);
      part.resize(4 * n);
      const auto c = count_sites(part.data(), n);
      for (int i = 0; i < 5; ++i) counts[i] += c[i];
      for (size_t i = 0; i < part.size(); i += 4) part[i] = b;
      rows.insert(rows.end(), part.begin(), part.end());
    }
    const int64_t total = int64_t(n) * batch;
    Array<int32_t> d_rows(rows);
    Array<__half> features(random_features(size_t(total)));
    const auto count = number(total);
    double us[2], mb[2];
    bool right = true;
    for (int i = 0; i < 2; ++i) {
      Encoder e(i == 1, batch, capacities(counts));
      us[i] = measure([&] { e.enqueue(d_rows, features, count, total, stream); }, 20).first;
      mb[i] = e.megabytes();
      right &= e.errors() == std::vector<int32_t>(dev::kErrorSlots, 0);
      const auto got = e.counts();
      for (int k = 0; k < 5; ++k) right &= got[k] == counts[k];
    }
    std::printf("| %ld | %d | %d | %.0f | %.0f | %.0f | %.0f |%s\n", long(n), batch, counts[1],
                us[0], us[1], mb[0], mb[1], right ? "" : " WRONG COUNTS");
  };
  for (const size_t n : {10000, 20000, 40000, 79745, 120000, 160000, 200000, 300000}) line(n, 1);
  for (const int batch : {2, 4, 8}) line(79745, batch);
}

void soak(const std::vector<int32_t>& real, int frames) {
  constexpr size_t kMost = 150000;
  const auto pool = shuffled(grow(real, 300000), rng);
  std::vector<size_t> first(frames), number_of(frames);
  for (int i = 0; i < frames; ++i) {
    number_of[i] = i % 500 == 7 ? 0 : i % 500 == 8 ? 1 : rng() % (kMost + 1);
    first[i] = rng() % (pool.size() / 4 - number_of[i] + 1);
  }
  std::vector<std::vector<int32_t>> want(frames);
  std::vector<std::thread> threads;
  const int workers = std::max(1u, std::thread::hardware_concurrency());
  for (int t = 0; t < workers; ++t) {
    threads.emplace_back([&, t] {
      for (int i = t; i < frames; i += workers) {
        want[i] = count_sites(&pool[4 * first[i]], number_of[i]);
      }
    });
  }
  for (auto& t : threads) t.join();

  Array<int32_t> d_pool(pool), rows(4 * kMost), count(1);
  Array<__half> features(random_features(kMost));
  int32_t* counts;
  OK(cudaMallocHost(&counts, size_t(frames) * 16 * 4));
  Encoder half(false, 1, {kMost, 400000, 250000, 100000, 60000});
  Encoder codes(true, 1, {kMost, 400000, 250000, 100000, 60000});
  Graph graphs[2] = {Graph([&] { half.enqueue(rows, features, count, kMost, stream); }),
                     Graph([&] { codes.enqueue(rows, features, count, kMost, stream); })};
  std::vector<__half> kept[2];
  size_t before, after, total;
  OK(cudaMemGetInfo(&before, &total));
  std::vector<int32_t> sizes(number_of.begin(), number_of.end());
  int wrong = 0, different = 0;
  cudaEvent_t a, b;
  OK(cudaEventCreate(&a));
  OK(cudaEventCreate(&b));
  OK(cudaEventRecord(a, stream));
  const auto frame = [&](int i, int which) {
    OK(cudaMemcpyAsync(rows, d_pool + 4 * first[i], 16 * number_of[i], cudaMemcpyDeviceToDevice,
                       stream));
    OK(cudaMemcpyAsync(count, &sizes[i], 4, cudaMemcpyHostToDevice, stream));
    OK(cudaGraphLaunch(graphs[which].run, stream));
  };
  for (int i = 0; i < frames; ++i) {
    const Encoder& e = i % 2 ? codes : half;
    frame(i, i % 2);
    OK(cudaMemcpyAsync(counts + 16 * i, e.counts_on_device(), 5 * 4, cudaMemcpyDeviceToHost, stream));
    OK(cudaMemcpyAsync(counts + 16 * i + 5, e.errors_on_device(), 8 * 4, cudaMemcpyDeviceToHost,
                       stream));
    // Now and then a frame from before, whose map must come out with the same bits.
    if (i < 2) kept[i] = e.dense().host();
    if (i >= 500 && i % 500 < 2) {
      frame(i % 2, i % 2);
      const auto again = e.dense().host();
      different += std::memcmp(again.data(), kept[i % 2].data(), again.size() * 2) != 0;
    }
  }
  OK(cudaEventRecord(b, stream));
  OK(cudaStreamSynchronize(stream));
  float ms;
  OK(cudaEventElapsedTime(&ms, a, b));
  OK(cudaMemGetInfo(&after, &total));
  for (int i = 0; i < frames; ++i) {
    bool right = std::equal(want[i].begin(), want[i].end(), counts + 16 * i);
    for (int k = 5; k < 13; ++k) right &= counts[16 * i + k] == 0;
    wrong += !right;
  }
  std::printf("soak: %d frames of 0 to %zu voxels, %d with a wrong count or an error, %d repeated "
              "frames differ, device memory grew by %ld bytes, %.3f ms a frame\n", frames, kMost,
              wrong, different, long(before) - long(after), ms / frames);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int32_t> shape;
  const auto rows = argc > 1 ? read_tensor<int32_t>(argv[1], &shape) : std::vector<int32_t>{};
  if (rows.empty()) {
    std::printf("no index rows: %s VOXELS.tensor [time] [layers] [tune] [scale] [soak FRAMES]\n",
                argv[0]);
    return 2;
  }
  OK(cudaStreamCreate(&stream));
  for (int i = 2; i < argc; ++i) {
    const std::string what = argv[i];
    if (what == "time" || what == "layers") time_stages(rows, what == "layers");
    if (what == "tune") tune(rows);
    if (what == "scale") scale(rows);
    if (what == "soak") soak(rows, i + 1 < argc ? std::atoi(argv[i + 1]) : 10000);
  }
  return 0;
}
