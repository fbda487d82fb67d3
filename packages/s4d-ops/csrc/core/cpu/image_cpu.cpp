// CPU resize and crop. The antialiased filters run in two passes, along x into a buffer of the
// source rows that the crop needs, then along y: each pass rounds to bytes, as Pillow's do.
#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <vector>

#include "../image_resize.h"
#include "../parallel.h"
#include "kernels.h"

namespace s4d {
namespace {

constexpr int64_t kRows = 8;  // of the horizontal pass

// The part of the crop that lies inside the resized image.
struct Window {
  int64_t row, rows, column, columns;  // in the crop

  explicit Window(const ResizeCrop& a) {
    row = std::clamp<int64_t>(-a.top, 0, a.height);
    column = std::clamp<int64_t>(-a.left, 0, a.width);
    rows = std::clamp<int64_t>(a.resized_height - a.top, row, a.height) - row;
    columns = std::clamp<int64_t>(a.resized_width - a.left, column, a.width) - column;
  }
};

uint8_t* target_at(const ResizeCrop& a, const Window& window, int64_t row) {
  return a.target + (window.row + row) * a.target_stride + 3 * window.column;
}

void antialiased(const ResizeCrop& a, const Window& window, int threads) {
  const ImageTable& loops = kernel_tables().image;
  const AxisWeights x = antialiased_weights(a.source_width, a.resized_width,
                                            a.left + window.column, window.columns, a.filter);
  const AxisWeights y = antialiased_weights(a.source_height, a.resized_height,
                                            a.top + window.row, window.rows, a.filter);
  int64_t first_row = a.source_height, last_row = 0;
  for (std::size_t i = 0; i < y.bounds.size(); i += 2) {
    first_row = std::min<int64_t>(first_row, y.bounds[i]);
    last_row = std::max<int64_t>(last_row, y.bounds[i] + y.bounds[i + 1]);
  }
  int64_t first_column = a.source_width, last_column = 0;
  for (std::size_t i = 0; i < x.bounds.size(); i += 2) {
    first_column = std::min<int64_t>(first_column, x.bounds[i]);
    last_column = std::max<int64_t>(last_column, x.bounds[i] + x.bounds[i + 1]);
  }
  const int64_t stride = 3 * window.columns;
  const int64_t rows = last_row - first_row;
  std::vector<uint8_t> buffer(static_cast<std::size_t>(rows * stride));
  const int64_t slabs = (rows + kRows - 1) / kRows;
  parallel_for(slabs, std::max<int64_t>(1, slabs / (4 * threads)), threads,
               [&](int64_t begin, int64_t end) {
                 std::vector<uint8_t> scratch(
                     static_cast<std::size_t>(kRows * 3 * (last_column - first_column)));
                 for (int64_t row = begin * kRows; row < std::min(rows, end * kRows);
                      row += kRows) {
                   loops.horizontal(a.source + (first_row + row) * a.source_stride,
                                    a.source_stride, std::min(kRows, rows - row), first_column,
                                    last_column, x.bounds.data(), x.coefficients.data(), x.taps,
                                    window.columns, buffer.data() + row * stride, stride,
                                    scratch.data());
                 }
               });
  parallel_for(window.rows, 8, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::size_t bound = static_cast<std::size_t>(2 * row);
      loops.vertical(buffer.data() + (y.bounds[bound] - first_row) * stride, stride,
                     y.bounds[bound + 1], y.coefficients.data() + row * y.taps, stride,
                     target_at(a, window, row));
    }
  });
}

void four_neighbours(const ResizeCrop& a, const Window& window, int threads) {
  const ImageTable& loops = kernel_tables().image;
  const AxisNeighbours x = linear_neighbours(a.source_width, a.resized_width,
                                             a.left + window.column, window.columns);
  const AxisNeighbours y = linear_neighbours(a.source_height, a.resized_height,
                                             a.top + window.row, window.rows);
  parallel_for(window.rows, 8, threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::size_t k = static_cast<std::size_t>(2 * row);
      loops.bilinear(a.source + y.positions[k] * a.source_stride,
                     a.source + y.positions[k + 1] * a.source_stride, y.weights[k],
                     y.weights[k + 1], x.positions.data(), x.weights.data(), window.columns,
                     target_at(a, window, row));
    }
  });
}

}  // namespace

std::string resize_crop_cpu(const ResizeCrop& args, int threads) {
  const std::string problem = check_resize_crop(args);
  if (!problem.empty()) return problem;
  if (threads <= 0) threads = default_threads();
  const Window window(args);
  try {
    if (window.rows < args.height || window.columns < args.width) {
      for (int64_t row = 0; row < args.height; ++row) {
        std::memset(args.target + row * args.target_stride, 0,
                    static_cast<std::size_t>(3 * args.width));
      }
    }
    if (window.rows == 0 || window.columns == 0) return {};
    if (args.filter == ResizeFilter::cv2_linear) {
      four_neighbours(args, window, threads);
    } else {
      antialiased(args, window, threads);
    }
    return {};
  } catch (const std::bad_alloc&) {
    return "resize_crop: not enough memory for the intermediate image";
  } catch (const std::exception& error) {
    return std::string("resize_crop: ") + error.what();
  }
}

}  // namespace s4d
