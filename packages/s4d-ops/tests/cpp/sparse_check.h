// Shared by the checks of sparse convolution on CUDA: counting, random sites, padded rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <set>

#include "core/sparse_conv/coordinates.h"
#include "core/sparse_conv/rulebook.h"
#include "core/sparse_conv/sparse_cuda.h"
#include "sparse_cuda_support.h"

namespace cpu = s4d::sparse;
namespace dev = s4d::sparse::cuda;
using s4d::DType;

inline std::mt19937 rng(0);
inline int failures = 0, checks = 0;

// Each stage on CUDA against the CPU core. Brief: few rows, for compute-sanitizer.
void check_sites_and_tables(bool brief);
void check_convolutions(bool brief);
void check_gradients(bool brief);
void check_layouts();
void check_voxels(bool brief, const char* cloud);  // cloud: file of halves, may be null

inline void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("WRONG %s\n", what.c_str());
}

inline std::vector<int32_t> random_rows(const cpu::Grid& g, size_t n) {
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

inline dev::GridView view(const cpu::Grid& g) {
  return {int(g.batch), int(g.shape[0]), int(g.shape[1]), int(g.shape[2])};
}

inline dev::GeometryView view(const cpu::Geometry& g, bool submanifold) {
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

inline float to_half(float x) { return __half2float(__float2half(x)); }

// Rows with their padding; `values` are exact in the type.
template <class T>
std::vector<T> padded(const std::vector<float>& values, size_t n, int channels, int stride) {
  std::vector<T> v(n * stride, T(0.0f));
  for (size_t i = 0; i < n; ++i) {
    for (int c = 0; c < channels; ++c) v[i * stride + c] = T(values[i * channels + c]);
  }
  return v;
}

inline Array<char> rows_of(DType type, const std::vector<float>& values, size_t n, int channels) {
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
inline std::vector<float> values_of(DType type, const Array<char>& rows, size_t n, int channels,
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
