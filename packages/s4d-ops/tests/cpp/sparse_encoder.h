// CenterPoint's sparse encoder (21 convolutions) out of the stages of the CUDA API, in memory of its
// own, enqueued on a stream without synchronisation. For measurements and soak tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "core/sparse_conv/sparse_cuda.h"
#include "sparse_cuda_support.h"

namespace dev = s4d::sparse::cuda;
using s4d::DType;

class Encoder {
 public:
  static constexpr int kLevels = 5;

  // capacity: rows of each level.
  Encoder(bool int8, int batch, const std::vector<int64_t>& capacity, unsigned seed = 0)
      : int8_(int8), capacity_(capacity), errors_(dev::kErrorSlots), counts_(8) {
    const dev::GridView grids[kLevels] = {{batch, 41, 1440, 1440}, {batch, 21, 720, 720},
                                          {batch, 11, 360, 360}, {batch, 5, 180, 180},
                                          {batch, 2, 180, 180}};
    const dev::GeometryView down{{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}};
    const dev::GeometryView down4{{3, 3, 3}, {2, 2, 2}, {0, 1, 1}, {1, 1, 1}};
    const dev::GeometryView last{{3, 1, 1}, {2, 1, 1}, {0, 0, 0}, {1, 1, 1}};
    const dev::GeometryView subm{{3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}};
    const dev::GeometryView geometry[kLevels] = {subm, down, down, down4, last};
    int64_t map_bytes = 0, offset[kLevels];
    for (int i = 0; i < kLevels; ++i) {
      offset[i] = map_bytes;
      map_bytes += dev::site_map_bytes(grids[i]);
    }
    maps_ = Array<char>(map_bytes);
    for (int i = 0; i < kLevels; ++i) {
      indices_.emplace_back(4 * capacity[i]);
      levels_[i].map = {grids[i], maps_ + offset[i], counts_ + i};
      levels_[i].geometry = geometry[i];
      levels_[i].indices = indices_[i];
      levels_[i].capacity = capacity[i];
    }
    for (int i = 0; i < 2 * kLevels - 2; ++i) {
      const bool link = i % 2 == 1;
      const int to = (i + 1) / 2, from = i / 2;
      const int volume = to == 4 ? 3 : 27;
      tables_.emplace_back(volume * capacity[to]);
      table_tasks_.push_back({indices_[to], counts_ + to, capacity[to], levels_[from].map, nullptr,
                              link ? geometry[to] : subm, tables_.back()});
    }
    int64_t widest = 0;
    for (int i = 0; i < kLevels; ++i) {
      const bool codes = int8 && i > 0 && i < 4;  // rows of level 0 are 32 bytes in both
      widest = std::max(widest, capacity[i] * width(i) * (codes ? 1 : 2));
    }
    for (auto& f : features_) f = Array<char>(widest);
    dense_ = Array<__half>(size_t{256} * 180 * 180 * batch);
    OK(cudaStreamCreateWithFlags(&beside_, cudaStreamNonBlocking));
    for (cudaEvent_t* event : {&start_, &sites_, &tables_done_}) {
      OK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    }
    plan(seed);
  }
  ~Encoder() {
    cudaDeviceSynchronize();
    cudaStreamDestroy(beside_);
    for (const cudaEvent_t event : {start_, sites_, tables_done_}) cudaEventDestroy(event);
  }

  // The whole encoder. What the first level does not need is built on a stream beside.
  void enqueue(const int32_t* indices, const __half* features, const int32_t* count,
               int64_t capacity, cudaStream_t s) {
    const auto first = static_cast<size_t>(
        dev::site_map_bytes(levels_[0].map.grid));
    OK(cudaMemsetAsync(errors_, 0, errors_.size() * 4, s));
    OK(cudaEventRecord(start_, s));
    OK(cudaStreamWaitEvent(beside_, start_, 0));
    OK(cudaMemsetAsync(maps_ + first, 0, maps_.size() - first, beside_));
    OK(dev::extend_sites(indices, count, capacity, levels_, kLevels, true, errors_, beside_));
    OK(cudaMemsetAsync(dense_, 0, dense_.size() * sizeof(__half), beside_));

    OK(cudaMemsetAsync(maps_, 0, first, s));
    OK(dev::build_sites(indices, count, capacity, levels_, 1, true, errors_, s));
    OK(cudaEventRecord(sites_, s));
    OK(cudaStreamWaitEvent(beside_, sites_, 0));
    OK(dev::build_tables(table_tasks_.data() + 1, static_cast<int>(table_tasks_.size()) - 1,
                         beside_));
    OK(cudaEventRecord(tables_done_, beside_));

    OK(dev::build_tables(table_tasks_.data(), 1, s));
    place(indices, features, count, capacity, s);
    for (size_t i = 0; i < layers_.size(); ++i) {
      auto layer = layers_[i];
      if (i == 5) {
        OK(cudaStreamWaitEvent(s, tables_done_, 0));
        layer.overlap = false;
      }
      OK(dev::convolve(layer, s));
    }
    scatter(s, true);
  }

  // One stage alone, for measurements: 0 to 5 are clear, sites, tables, place, network, dense.
  void stage(int which, const int32_t* indices, const __half* features, const int32_t* count,
             int64_t capacity, cudaStream_t s) {
    if (which == 0) OK(cudaMemsetAsync(maps_, 0, maps_.size(), s));
    if (which == 1) {
      OK(dev::build_sites(indices, count, capacity, levels_, kLevels, true, errors_, s));
    }
    if (which == 2) {
      OK(dev::build_tables(table_tasks_.data(), static_cast<int>(table_tasks_.size()), s));
    }
    if (which == 3) place(indices, features, count, capacity, s);
    if (which == 4) {
      for (const auto& layer : layers_) OK(dev::convolve(layer, s));
    }
    if (which == 5) scatter(s, false);
  }

  const std::vector<dev::ConvolutionTask>& layers() const { return layers_; }
  std::vector<int32_t> counts() const { return counts_.host(); }
  std::vector<int32_t> errors() const { return errors_.host(); }
  const int32_t* counts_on_device() const { return counts_; }
  const int32_t* errors_on_device() const { return errors_; }
  const Array<__half>& dense() const { return dense_; }
  const Array<char>& features(int i) const { return features_[i]; }
  double megabytes(bool print = false) const {
    double tables = 0, rows = 0, weights = 0, features = 0;
    for (const auto& t : tables_) tables += t.size() * 4;
    for (const auto& t : indices_) rows += t.size() * 4;
    for (const auto& w : weights_) weights += w.size();
    for (const auto& f : features_) features += f.size();
    const double dense = dense_.size() * 2.0, maps = maps_.size();
    if (print) {
      std::printf("memory MB: maps %.1f tables %.1f sites %.1f features %.1f weights %.1f dense %.1f\n",
                  maps / 1e6, tables / 1e6, rows / 1e6, features / 1e6, weights / 1e6, dense / 1e6);
    }
    return (tables + rows + weights + features + dense + maps) / 1e6;
  }

  static int width(int level) { return level < 4 ? 16 << level : 128; }

 private:
  void place(const int32_t* indices, const __half* features, const int32_t* count,
             int64_t capacity, cudaStream_t s) {
    dev::PlaceTask task;
    task.indices = indices;
    task.count = count;
    task.capacity = capacity;
    task.map = levels_[0].map;
    task.features = features;
    task.channels = 5;
    task.out = features_[0];
    OK(dev::place_rows(task, s));
  }

  void scatter(cudaStream_t s, bool cleared) {
    dev::DenseTask task;
    task.map = levels_[4].map;
    task.capacity = capacity_[4];
    task.features = layers_.back().output;
    task.stride = task.channels = 128;
    task.dense = dense_;
    task.cleared = cleared;
    OK(dev::scatter_dense(task, s));
  }

  void plan(unsigned seed) {
    std::mt19937 rng(seed);
    int at = 0;  // feature buffer that holds the current rows
    bool codes = false;
    const auto add = [&](int level, int table, int in, bool product8, bool out8, int from, int to,
                         int residual, bool residual8) {
      dev::ConvolutionTask t;
      t.type = product8 ? DType::i8 : DType::f16;
      t.in_channels = in;
      t.out_channels = width(level);
      t.features = features_[from];
      t.table = tables_[table];
      t.volume = level == 4 ? 3 : 27;
      t.out_count = counts_ + level;
      t.capacity = capacity_[level];
      const size_t n = size_t{static_cast<size_t>(t.volume)} * in * t.out_channels;
      weights_.emplace_back(dev::packed_weight_bytes(t.type, t.volume, in, t.out_channels));
      std::normal_distribution<float> normal(0.0f, std::sqrt(2.0f / (t.volume * in)));
      if (product8) {
        std::uniform_int_distribution<int> code(-127, 127);
        std::vector<int8_t> w(n);
        for (auto& x : w) x = static_cast<int8_t>(code(rng));
        Array<int8_t> raw(w);
        OK(dev::pack_weights(t.type, raw, t.type, t.volume, in, t.out_channels, false,
                             weights_.back(), 0));
        OK(cudaDeviceSynchronize());
        small_.emplace_back(std::vector<float>(t.out_channels,
            4.0f / 127 * 0.02f / std::sqrt(t.volume * in / 432.0f) / 1.0f));
        t.scale = small_.back();
      } else {
        std::vector<float> w(n);
        for (auto& x : w) x = normal(rng);
        Array<float> raw(w);
        OK(dev::pack_weights(t.type, raw, DType::f32, t.volume, in, t.out_channels, false,
                             weights_.back(), 0));
        OK(cudaDeviceSynchronize());
      }
      t.weight = weights_.back();
      std::vector<float> bias(t.out_channels);
      for (auto& x : bias) x = 0.1f * normal(rng);
      small_.emplace_back(bias);
      t.bias = small_.back();
      t.settled_weights = true;
      t.activation = s4d::sparse::Activation::relu;
      if (residual >= 0) {
        t.residual = {features_[residual], residual8 ? DType::i8 : DType::f16, 4.0f};
      }
      t.output = {features_[to], out8 ? DType::i8 : DType::f16, 4.0f};
      layers_.push_back(t);
    };
    const auto other = [](int a, int b = -1) {
      int i = 0;
      while (i == a || i == b) ++i;
      return i;
    };
    for (int level = 0; level < kLevels; ++level) {
      const int to = other(at);
      if (level == 0) {
        add(0, 0, 5, false, false, at, to, -1, false);
      } else {
        const bool out8 = int8_ && level < 4;
        add(level, 2 * level - 1, width(level - 1), int8_, out8, at, to, -1, false);
        codes = out8;
      }
      at = to;
      if (level == 4) break;
      for (int block = 0; block < 2; ++block) {
        const bool eight = int8_ && (level > 0 || block > 0);
        const int middle = other(at), end = other(at, middle);
        add(level, 2 * level, width(level), eight, eight, at, middle, -1, false);
        add(level, 2 * level, width(level), eight, int8_, middle, end, at, codes);
        codes = int8_;
        at = end;
      }
    }
  }

  bool int8_;
  cudaStream_t beside_;
  cudaEvent_t start_, sites_, tables_done_;
  std::vector<int64_t> capacity_;
  Array<int32_t> errors_, counts_;
  Array<char> maps_;
  dev::SiteLevel levels_[kLevels];
  std::vector<Array<int32_t>> indices_, tables_;
  std::vector<dev::TableTask> table_tasks_;
  Array<char> features_[3];
  Array<__half> dense_;
  std::vector<Array<char>> weights_;
  std::vector<Array<float>> small_;
  std::vector<dev::ConvolutionTask> layers_;
};
