// Rows through chains of small layers: y = norm(relu(x W + b)), single precision, on CUDA.
//
// A chain reads some columns of the input's rows and writes some of the output's; several chains on
// the same rows run side by side. Products and sums are plain float32, without TF32.
#pragma once

#include <cstdint>
#include <string>

namespace s4d {

constexpr int kMaxChains = 8;
constexpr int kMaxChainLayers = 8;
constexpr int kMaxChainWidth = 512;

struct DenseLayer {
  int32_t width = 0;       // output channels
  bool relu = false;
  bool norm = false;       // LayerNorm over the channels, after the ReLU
  // Where they begin: weight (in, width), bias, then gain and shift if norm. A multiple of 4.
  int64_t parameters = 0;
};

struct DenseChain {
  int32_t first = 0;   // first input column
  int32_t width = 0;   // input columns
  int32_t target = 0;  // first output column
  int32_t layers = 0;
  DenseLayer layer[kMaxChainLayers];
};

struct DenseChains {
  int32_t count = 0;
  DenseChain chain[kMaxChains];
  int64_t rows = 0;
  int32_t input_width = 0;   // columns of a row
  int32_t output_width = 0;  // the same
  float epsilon = 0.0f;
  const float* input = nullptr;       // (rows, input_width)
  const float* parameters = nullptr;  // of all chains; at a multiple of 16 bytes
  float* output = nullptr;            // (rows, output_width)
  void* stream = nullptr;             // cudaStream_t
};

// Reads "first width layer layer ...;first ...", where a layer is its width and the letters r (ReLU)
// and n (LayerNorm): "0 3 128rn 128rn;3 3 32rn 16". Sets `count`, `chain` and `output_width`.
// Returns how many parameters there are, the zeros that align the layers included, or -1 where the text is not sound.
int64_t parse_dense_chains(const std::string& text, DenseChains* out);

// Empty string on success. Nothing is allocated and nothing synchronises.
std::string dense_chains_cuda(const DenseChains& args);

}  // namespace s4d
