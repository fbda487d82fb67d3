// From a camera image (uint8, 3 interleaved channels) to the network's input size: resize and
// crop in one pass, with the arithmetic of the library that a model was trained with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace s4d {

enum class ResizeFilter : int32_t {
  pillow_bicubic = 0,   // antialiased, cubic with a = -0.5
  pillow_bilinear = 1,  // antialiased, triangle
  cv2_linear = 2,       // the four neighbours only
};

struct ResizeCrop {
  const uint8_t* source = nullptr;  // (source_height, source_width, 3)
  int64_t source_height = 0;
  int64_t source_width = 0;
  int64_t source_stride = 0;  // bytes from row to row

  int64_t resized_height = 0;  // size of the whole image after the resize
  int64_t resized_width = 0;
  int64_t top = 0;  // of the crop in the resized image; what lies outside it is black
  int64_t left = 0;
  int64_t height = 0;  // of the crop
  int64_t width = 0;
  ResizeFilter filter = ResizeFilter::pillow_bicubic;

  uint8_t* target = nullptr;  // (height, width, 3)
  int64_t target_stride = 0;
};

// Weights of an antialiased resize along one axis, for outputs [first, first + count) of
// `out_size`, in Pillow's fixed point (22 bits). Output i sums taps source positions from
// bounds[2i]; bounds[2i + 1] of them count. Also used for the CUDA kernel.
struct AxisWeights {
  int64_t taps = 0;
  std::vector<int32_t> bounds;
  std::vector<int32_t> coefficients;  // count * taps
};
AxisWeights antialiased_weights(int64_t in_size, int64_t out_size, int64_t first, int64_t count,
                                ResizeFilter filter);

// The same for the two neighbours of cv2_linear, in OpenCV's fixed point (11 bits): two positions
// and two weights per output.
struct AxisNeighbours {
  std::vector<int32_t> positions;
  std::vector<int32_t> weights;
};
AxisNeighbours linear_neighbours(int64_t in_size, int64_t out_size, int64_t first, int64_t count);

// Empty string, or what is wrong with the sizes. Pointers are not looked at.
std::string check_resize_crop(const ResizeCrop& args);

// CPU kernel. Empty string on success; the result does not depend on `threads`.
std::string resize_crop_cpu(const ResizeCrop& args, int threads = 0);

}  // namespace s4d
