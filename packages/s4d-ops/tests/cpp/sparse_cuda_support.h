// Shared by the standalone CUDA programs of sparse convolution: device arrays and tensor files.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#define OK(x)                                                                   \
  do {                                                                          \
    const cudaError_t e_ = (x);                                                 \
    if (e_ != cudaSuccess) {                                                    \
      std::printf("CUDA %s at %s:%d\n", cudaGetErrorString(e_), __FILE__, __LINE__); \
      std::exit(1);                                                             \
    }                                                                           \
  } while (0)

// Device memory, poisoned so that what nobody wrote shows.
template <class T>
class Array {
 public:
  explicit Array(size_t n = 0) : n_(n) {
    OK(cudaMalloc(&data_, bytes()));
    OK(cudaMemset(data_, 0xee, bytes()));
  }
  Array(const std::vector<T>& from) : n_(from.size()) {  // NOLINT: an upload
    OK(cudaMalloc(&data_, bytes()));
    OK(cudaMemcpy(data_, from.data(), n_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  Array(Array&& other) noexcept : data_(std::exchange(other.data_, nullptr)), n_(other.n_) {}
  Array& operator=(Array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(n_, other.n_);
    return *this;
  }
  ~Array() {
    if (data_) cudaFree(data_);
  }
  T* get() const { return data_; }
  operator T*() const { return data_; }
  size_t size() const { return n_; }
  void fill(int byte) { OK(cudaMemset(data_, byte, n_ * sizeof(T))); }
  std::vector<T> host() const {
    std::vector<T> v(n_);
    OK(cudaDeviceSynchronize());
    OK(cudaMemcpy(v.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }

 private:
  size_t bytes() const { return (n_ ? n_ : 1) * sizeof(T); }
  T* data_ = nullptr;
  size_t n_ = 0;
};

inline Array<int32_t> number(int64_t value) {
  return Array<int32_t>(std::vector<int32_t>{static_cast<int32_t>(value)});
}

// The data of a tensor file (REFERENCE: magic, rank, type, sizes, data), empty if it is absent.
template <class T>
std::vector<T> read_tensor(const std::string& path, std::vector<int32_t>* shape) {
  std::ifstream file(path, std::ios::binary);
  int32_t head[3] = {};
  file.read(reinterpret_cast<char*>(head), sizeof head);
  if (!file || head[0] != 0x33ff1101 || head[1] < 1 || head[1] > 8) return {};
  shape->resize(head[1]);
  file.read(reinterpret_cast<char*>(shape->data()), 4 * head[1]);
  size_t n = 1;
  for (const int32_t size : *shape) n *= size;
  std::vector<T> data(n);
  file.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(n * sizeof(T)));
  return file ? data : std::vector<T>{};
}
