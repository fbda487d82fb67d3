// numpy door: thin wrappers that check, release the interpreter lock and call the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <string>
#include <vector>

#include "core/deformable_aggregation.h"
#include "core/image_resize.h"
#include "core/parallel.h"

namespace py = pybind11;

#ifdef S4D_WITH_SPARSE
void bind_sparse(py::module_& m);  // csrc/python/sparse*.cpp
#endif

namespace {

s4d::DType dtype_of(const py::array& array, const char* what) {
  const py::dtype type = array.dtype();
  if (type.kind() == 'f' && type.itemsize() == 4) return s4d::DType::f32;
  if (type.kind() == 'f' && type.itemsize() == 8) return s4d::DType::f64;
  if (type.kind() == 'f' && type.itemsize() == 2) return s4d::DType::f16;
  if (type.kind() == 'i' && type.itemsize() == 4) return s4d::DType::i32;
  if (type.kind() == 'i' && type.itemsize() == 8) return s4d::DType::i64;
  throw py::type_error(std::string("deformable_aggregation: ") + what + " has type " +
                       py::str(type).cast<std::string>() +
                       "; expected float32, float64 or float16 values and int32 or int64 indices");
}

struct Shape {
  std::vector<int64_t> sizes;
  s4d::DType type;

  Shape(const py::array& array, const char* what)
      : sizes(array.shape(), array.shape() + array.ndim()), type(dtype_of(array, what)) {
    if (!(array.flags() & py::array::c_style)) {
      throw py::value_error(std::string("deformable_aggregation: expected a contiguous ") + what);
    }
  }
  s4d::TensorShape view() const {
    return {sizes.data(), static_cast<int64_t>(sizes.size()), type};
  }
};

py::array deformable_aggregation(const py::array& features, const py::array& spatial_shapes,
                                 const py::array& level_start_index, const py::array& locations,
                                 const py::array& weights, int threads) {
  const Shape feature(features, "features"), spatial(spatial_shapes, "spatial_shapes"),
      start(level_start_index, "level_start_index"), location(locations, "sampling_locations"),
      weight(weights, "weights");
  s4d::AggregationForward args;
  std::string problem = s4d::check_aggregation(feature.view(), spatial.view(), start.view(),
                                               location.view(), weight.view(), &args.shape);
  if (!problem.empty()) throw py::value_error(problem);
  py::array output(features.dtype(),
                   std::vector<py::ssize_t>{args.shape.batch, args.shape.anchors,
                                            args.shape.channels});
  args.feature_type = args.output_type = feature.type;
  args.location_type = location.type;
  args.weight_type = weight.type;
  args.index_type = spatial.type;
  args.features = features.data();
  args.spatial_shapes = spatial_shapes.data();
  args.level_start_index = level_start_index.data();
  args.locations = locations.data();
  args.weights = weights.data();
  args.output = output.mutable_data();
  {
    const py::gil_scoped_release release;
    problem = s4d::aggregation_forward_cpu(args, threads);
  }
  if (!problem.empty()) throw py::value_error(problem);
  return output;
}

using Pair = std::array<int64_t, 2>;

Pair pair_of(const py::tuple& tuple) {
  if (tuple.size() != 2) throw py::value_error("resize_crop: expected pairs (row, column)");
  return {tuple[0].cast<int64_t>(), tuple[1].cast<int64_t>()};
}

bool is_image(const py::array& array, int64_t height, int64_t width) {
  return array.ndim() == 3 && array.shape(0) == height && array.shape(1) == width &&
         array.shape(2) == 3 && array.dtype().kind() == 'u' && array.itemsize() == 1;
}

std::string describe(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + ") " + py::str(array.dtype()).cast<std::string>();
}

py::array resize_crop(const py::array& image, const py::tuple& resized_size,
                      const py::tuple& origin, const py::tuple& size, const py::tuple& raw_size,
                      int filter, const py::object& out, int threads) {
  const Pair raw = pair_of(raw_size), resized = pair_of(resized_size), corner = pair_of(origin),
             crop = pair_of(size);
  if (!is_image(image, raw[0], raw[1])) {
    throw py::value_error("resize_crop: expected an image (" + std::to_string(raw[0]) + ", " +
                          std::to_string(raw[1]) + ", 3) uint8, got " + describe(image));
  }
  // Rows may be strided; the bytes of a row must lie together.
  const bool packed = image.strides(2) == 1 && image.strides(1) == 3 &&
                      image.strides(0) >= 3 * image.shape(1);
  const py::array source = packed ? image : py::array_t<uint8_t, py::array::c_style>(image);
  s4d::ResizeCrop args;
  args.source = static_cast<const uint8_t*>(source.data());
  args.source_height = raw[0];
  args.source_width = raw[1];
  args.source_stride = source.shape(0) > 1 ? source.strides(0) : 3 * raw[1];
  args.resized_height = resized[0];
  args.resized_width = resized[1];
  args.top = corner[0];
  args.left = corner[1];
  args.height = crop[0];
  args.width = crop[1];
  args.target_stride = 3 * crop[1];
  args.filter = static_cast<s4d::ResizeFilter>(filter);
  std::string problem = s4d::check_resize_crop(args);
  if (!problem.empty()) throw py::value_error(problem);
  py::array target;
  if (out.is_none()) {
    target = py::array_t<uint8_t>(std::vector<py::ssize_t>{crop[0], crop[1], 3});
  } else {
    if (!py::isinstance<py::array>(out)) {
      throw py::type_error("resize_crop: expected out to be a numpy array");
    }
    target = py::reinterpret_borrow<py::array>(out);
    if (!is_image(target, crop[0], crop[1]) || !target.writeable() ||
        !(target.flags() & py::array::c_style)) {
      throw py::value_error("resize_crop: expected out to be a writeable contiguous (" +
                            std::to_string(crop[0]) + ", " + std::to_string(crop[1]) +
                            ", 3) uint8 array, got " + describe(target));
    }
  }
  args.target = static_cast<uint8_t*>(target.mutable_data());
  {
    const py::gil_scoped_release release;
    problem = s4d::resize_crop_cpu(args, threads);
  }
  if (!problem.empty()) throw py::value_error(problem);
  return target;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The kernels of s4d-ops on numpy arrays. Use s4d_ops.numpy and s4d_ops.image.";
  m.def("deformable_aggregation", &deformable_aggregation);
  m.def("resize_crop", &resize_crop);
  m.def("default_threads", &s4d::default_threads);
#ifdef S4D_WITH_SPARSE
  bind_sparse(m);
#endif
}
