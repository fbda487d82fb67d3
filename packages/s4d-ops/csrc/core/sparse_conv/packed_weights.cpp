#include <algorithm>
#include <cstring>
#include <string>

#include "convolution.h"

namespace s4d::sparse {

namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int64_t panel_width(DType type) {
  const Kernels& kernels = cpu_kernels();
  switch (type) {
    case DType::f32: return kernels.width_f32;
    case DType::f64: return kernels.width_f64;
    case DType::i8: return kernels.width_i8;
    default:
      throw InvalidSparseInput(std::string("expected weights of float32, float64 or int8, got ") +
                               name(type));
  }
}

}  // namespace

PackedWeights::PackedWeights(const void* weight, DType type, int64_t volume, int64_t in_channels,
                             int64_t out_channels, const float* channel_range, bool transposed)
    : type_(type),
      volume_(volume),
      depth_(transposed ? out_channels : in_channels),
      columns_(transposed ? in_channels : out_channels),
      width_(panel_width(type)),
      padded_depth_(type == DType::i8 ? round_up(depth_, 2) : depth_),
      padded_columns_(round_up(columns_, width_)) {
  if (volume < 1 || in_channels < 1 || out_channels < 1) {
    throw InvalidSparseInput("expected weights with at least one offset and one channel");
  }
  const int64_t element = static_cast<int64_t>(size_of(type));
  // The int32 sum of one output takes volume * depth products of at most 127 * 127.
  if (type == DType::i8 && volume * depth_ > INT32_MAX / (127 * 127)) {
    throw InvalidSparseInput("int8 sums of " + std::to_string(volume * depth_) +
                             " products can leave int32; use fp16 for this layer");
  }
  if (type == DType::i8) {
    const int8_t* codes = static_cast<const int8_t*>(weight);
    if (std::find(codes, codes + volume * in_channels * out_channels, -128) !=
        codes + volume * in_channels * out_channels) {
      throw InvalidSparseInput("expected int8 weight codes from -127 to 127, got -128");
    }
    if (channel_range) channel_range_.assign(channel_range, channel_range + columns_);
  }
  panel_bytes_ = padded_depth_ * width_ * element;
  storage_.assign(static_cast<size_t>(volume * panels() * panel_bytes_), 0);
  const char* source = static_cast<const char*>(weight);
  const int64_t pair = type == DType::i8 ? 2 : 1;
  for (int64_t o = 0; o < out_channels; ++o) {
    for (int64_t k = 0; k < volume; ++k) {
      for (int64_t i = 0; i < in_channels; ++i) {
        const int64_t d = transposed ? o : i;
        const int64_t column = transposed ? i : o;
        const int64_t place = (d / pair * width_ + column % width_) * pair + d % pair;
        char* to = storage_.data() + (k * panels() + column / width_) * panel_bytes_;
        std::memcpy(to + place * element, source + ((o * volume + k) * in_channels + i) * element,
                    static_cast<size_t>(element));
      }
    }
  }
}

}  // namespace s4d::sparse
