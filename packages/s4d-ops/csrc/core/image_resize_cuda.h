// CUDA resize and crop of camera images: the arithmetic of image_resize.h on a stream.
#pragma once

#include <cstdint>
#include <string>

#include "image_resize.h"

namespace s4d {

enum class ImageLayout : int32_t {
  bytes = 0,       // (images, height, width, 3) uint8
  planar_f32 = 1,  // (images, 3, height, width) float, (value - mean) / std
  planar_f16 = 2,  // the same in half precision
};

constexpr int kMaxImages = 16;  // in one call

struct ResizeCropCuda {
  ResizeCrop geometry;  // source and target are not used; source_stride is that of every image
  const uint8_t* const* sources = nullptr;  // host array of device addresses
  int64_t images = 0;
  ImageLayout layout = ImageLayout::bytes;
  float mean[3] = {0.0f, 0.0f, 0.0f};  // planar layouts only, in grey levels
  float std[3] = {1.0f, 1.0f, 1.0f};
  void* target = nullptr;  // device, contiguous; every element is written
  void* stream = nullptr;  // cudaStream_t
};

// Empty string on success. Nothing is allocated and nothing synchronises. A reduction so strong
// that one output row needs more shared memory than a block has (about 100-fold) is refused.
std::string resize_crop_cuda(const ResizeCropCuda& args);

}  // namespace s4d
