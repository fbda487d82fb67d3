// Size checks and the weights of each filter.
#include "image_resize.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace s4d {
namespace {

constexpr int64_t kLargest = int64_t{1} << 24;  // pixels along a side

double triangle(double x) { return std::max(0.0, 1.0 - std::fabs(x)); }

// Keys' cubic convolution kernel with a = -0.5.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

}  // namespace

AxisWeights antialiased_weights(int64_t in_size, int64_t out_size, int64_t first, int64_t count,
                                ResizeFilter filter) {
  const bool bicubic = filter == ResizeFilter::pillow_bicubic;
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double stretch = std::max(scale, 1.0);  // never narrower than one source pixel
  const double support = (bicubic ? 2.0 : 1.0) * stretch;
  AxisWeights result;
  result.taps = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  result.bounds.resize(static_cast<std::size_t>(2 * count));
  result.coefficients.assign(static_cast<std::size_t>(count * result.taps), 0);
  std::vector<double> weights(static_cast<std::size_t>(result.taps));
  for (int64_t i = 0; i < count; ++i) {
    const double center = (static_cast<double>(first + i) + 0.5) * scale;
    const int64_t begin = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
    const int64_t end = std::min(in_size, static_cast<int64_t>(center + support + 0.5));
    const int64_t length = std::min(end - begin, result.taps);
    double sum = 0.0;
    for (int64_t k = 0; k < length; ++k) {
      const double x = (static_cast<double>(begin + k) - center + 0.5) * (1.0 / stretch);
      const double weight = bicubic ? cubic(x) : triangle(x);
      weights[static_cast<std::size_t>(k)] = weight;
      sum += weight;
    }
    for (int64_t k = 0; k < length; ++k) {
      double weight = weights[static_cast<std::size_t>(k)];
      if (sum != 0.0) weight /= sum;
      const double scaled = weight * (1 << 22);
      result.coefficients[static_cast<std::size_t>(i * result.taps + k)] =
          static_cast<int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    }
    result.bounds[static_cast<std::size_t>(2 * i)] = static_cast<int32_t>(begin);
    result.bounds[static_cast<std::size_t>(2 * i + 1)] = static_cast<int32_t>(length);
  }
  return result;
}

AxisNeighbours linear_neighbours(int64_t in_size, int64_t out_size, int64_t first, int64_t count) {
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  AxisNeighbours result;
  for (int64_t i = 0; i < count; ++i) {
    const double x = (static_cast<double>(first + i) + 0.5) * scale - 0.5;
    const double low = std::clamp(std::floor(x), 0.0, static_cast<double>(in_size - 1));
    const double fraction = std::clamp(x - low, 0.0, 1.0);
    const auto position = static_cast<int64_t>(low);
    const auto weight = static_cast<int32_t>(std::lrint(fraction * 2048.0));
    result.positions.push_back(static_cast<int32_t>(position));
    result.positions.push_back(static_cast<int32_t>(std::min(position + 1, in_size - 1)));
    result.weights.push_back(2048 - weight);
    result.weights.push_back(weight);
  }
  return result;
}

std::string check_resize_crop(const ResizeCrop& args) {
  std::ostringstream out;
  const auto side = [](int64_t value) { return value >= 1 && value <= kLargest; };
  if (!side(args.source_height) || !side(args.source_width) || !side(args.resized_height) ||
      !side(args.resized_width) || !side(args.height) || !side(args.width)) {
    out << "resize_crop: expected sides from 1 to " << kLargest << " pixels; got image "
        << args.source_height << " x " << args.source_width << ", resized "
        << args.resized_height << " x " << args.resized_width << ", crop " << args.height << " x "
        << args.width;
  } else if (std::abs(args.top) > kLargest || std::abs(args.left) > kLargest) {
    out << "resize_crop: the crop starts too far away, at row " << args.top << ", column "
        << args.left;
  } else if (args.source_stride < 3 * args.source_width ||
             args.target_stride < 3 * args.width) {
    out << "resize_crop: expected rows of at least 3 bytes a pixel";
  } else if (args.filter != ResizeFilter::pillow_bicubic &&
             args.filter != ResizeFilter::pillow_bilinear &&
             args.filter != ResizeFilter::cv2_linear) {
    out << "resize_crop: unknown filter " << static_cast<int32_t>(args.filter);
  }
  return out.str();
}

}  // namespace s4d
