// C interface of the CUDA image kernel, for ctypes (s4d_ops.image_cuda): no framework needed.
#include <cstdio>
#include <string>

#include "core/image_resize_cuda.h"

// `sizes`: source height, width and row stride, resized height and width, top, left, crop height
// and width. `message` receives what went wrong (cut to `message_size`). Returns 0 on success.
extern "C" __attribute__((visibility("default"))) int s4d_resize_crop_cuda(
    const void* const* sources, int64_t images, const int64_t* sizes, int32_t filter,
    int32_t layout, const float* mean, const float* std, void* target, void* stream,
    char* message, int64_t message_size) noexcept {
  std::string problem;
  try {
    s4d::ResizeCropCuda args;
    s4d::ResizeCrop& g = args.geometry;
    g.source_height = sizes[0];
    g.source_width = sizes[1];
    g.source_stride = sizes[2];
    g.resized_height = sizes[3];
    g.resized_width = sizes[4];
    g.top = sizes[5];
    g.left = sizes[6];
    g.height = sizes[7];
    g.width = sizes[8];
    g.target_stride = 3 * g.width;
    g.filter = static_cast<s4d::ResizeFilter>(filter);
    args.sources = reinterpret_cast<const uint8_t* const*>(sources);
    args.images = images;
    args.layout = static_cast<s4d::ImageLayout>(layout);
    for (int c = 0; c < 3; ++c) {
      args.mean[c] = mean[c];
      args.std[c] = std[c];
    }
    args.target = target;
    args.stream = stream;
    problem = s4d::resize_crop_cuda(args);
  } catch (...) {
    problem = "resize_crop: unknown error";
  }
  std::snprintf(message, static_cast<size_t>(message_size), "%s", problem.c_str());
  return problem.empty() ? 0 : 1;
}
