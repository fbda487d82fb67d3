// Door of the sparse convolution core on CUDA for Python without a framework: a Program is a list
// of the core's calls (cuda_program.h). Addresses and streams are Python integers; the owner of the
// memory is the caller. s4d_ops.sparse_cuda gives the module its Python names.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/sparse_conv/geometry.h"
#include "core/sparse_conv/sparse_cuda.h"
#include "core/sparse_input/input_cuda.h"
#include "cuda_program.h"

namespace py = pybind11;

void bind_dlpack(py::module_& module);

namespace s4d::sparse::cuda {
namespace {

using Address = uintptr_t;
using GridNumbers = std::array<int32_t, 4>;                  // batch and the three axes
using GeometryNumbers = std::array<std::array<int32_t, 3>, 4>;  // kernel stride padding dilation
using FeatureNumbers = std::tuple<Address, std::string, float>;  // memory, type, range
using MapNumbers = std::tuple<GridNumbers, Address, Address>;    // grid, memory, count
// map, geometry, indices, capacity
using LevelNumbers = std::tuple<MapNumbers, GeometryNumbers, Address, int64_t>;
// out indices, out count, capacity, map, in order, geometry, table
using TableNumbers =
    std::tuple<Address, Address, int64_t, MapNumbers, Address, GeometryNumbers, Address>;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

int32_t* ints(Address address) { return at<int32_t>(address); }

cudaStream_t stream_of(Address address) { return reinterpret_cast<cudaStream_t>(address); }

DType type_of(const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "float16") return DType::f16;
  if (name == "int8") return DType::i8;
  throw InvalidSparseInput("expected float32, float16 or int8, got " + name);
}

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "sigmoid") return Activation::sigmoid;
  throw InvalidSparseInput("expected activation none, relu, leaky_relu or sigmoid, got " + name);
}

GridView grid_of(const GridNumbers& n) { return GridView{n[0], n[1], n[2], n[3]}; }

GeometryView geometry_of(const GeometryNumbers& n) {
  GeometryView view;
  for (size_t axis = 0; axis < 3; ++axis) {
    view.kernel[axis] = n[0][axis];
    view.stride[axis] = n[1][axis];
    view.padding[axis] = n[2][axis];
    view.dilation[axis] = n[3][axis];
  }
  return view;
}

SiteMap map_of(const MapNumbers& n) {
  return SiteMap{grid_of(std::get<0>(n)), at(std::get<1>(n)), ints(std::get<2>(n))};
}

Features features_of(const FeatureNumbers& n) {
  return Features{at(std::get<0>(n)), type_of(std::get<1>(n)), std::get<2>(n)};
}

SiteLevel level_of(const LevelNumbers& n) {
  return SiteLevel{map_of(std::get<0>(n)), geometry_of(std::get<1>(n)), ints(std::get<2>(n)),
                   std::get<3>(n)};
}

// The stages of the core as calls of a list.
class Program : public CallList {
 public:
  void clear(Address memory, int64_t bytes) {
    add("clear", [=](cudaStream_t s) {
      return cudaMemsetAsync(at(memory), 0, static_cast<size_t>(bytes), s);
    });
  }

  void store(Address to, int32_t value) {
    add("store", [=](cudaStream_t s) { return store_int(ints(to), value, s); });
  }

  void copy(Address to, Address from, int64_t bytes) {
    add("copy", [=](cudaStream_t s) {
      return cudaMemcpyAsync(at(to), at(from), static_cast<size_t>(bytes),
                             cudaMemcpyDeviceToDevice, s);
    });
  }

  void guard(Address counts, int32_t number, Address lost, Address needed) {
    add("guard_counts", [=](cudaStream_t s) {
      return guard_counts(ints(counts), number, ints(lost), ints(needed), s);
    });
  }

  void check_finite(Address features, const std::string& type, Address count, int64_t capacity,
                    int32_t channels, bool as_half, Address bad) {
    const DType t = type_of(type);
    add("check_finite", [=](cudaStream_t s) {
      return count_not_finite(at(features), t, ints(count), capacity, channels, as_half,
                              ints(bad), s);
    });
  }

  void sites(Address indices, Address count, int64_t capacity,
             const std::vector<LevelNumbers>& numbers, bool cleared, Address errors) {
    std::vector<SiteLevel> levels;
    for (const LevelNumbers& n : numbers) levels.push_back(level_of(n));
    add("build_sites", [=](cudaStream_t s) {
      return build_sites(ints(indices), ints(count), capacity, levels.data(),
                         static_cast<int>(levels.size()), cleared, ints(errors), s);
    });
  }

  void later_sites(Address indices, Address count, int64_t capacity,
                   const std::vector<LevelNumbers>& numbers, bool cleared, Address errors) {
    std::vector<SiteLevel> levels;
    for (const LevelNumbers& n : numbers) levels.push_back(level_of(n));
    add("extend_sites", [=](cudaStream_t s) {
      return extend_sites(ints(indices), ints(count), capacity, levels.data(),
                          static_cast<int>(levels.size()), cleared, ints(errors), s);
    });
  }

  void one_level(Address indices, Address count, int64_t capacity, const LevelNumbers& numbers,
                 bool cleared, Address errors) {
    const SiteLevel level = level_of(numbers);
    add("strided_sites", [=](cudaStream_t s) {
      return strided_sites(ints(indices), ints(count), capacity, level, cleared, ints(errors), s);
    });
  }

  void place(Address indices, Address count, int64_t capacity, const MapNumbers& map,
             const std::tuple<Address, std::string>& features, int32_t channels,
             const FeatureNumbers& out, Address order) {
    PlaceTask task;
    task.indices = ints(indices);
    task.count = ints(count);
    task.capacity = capacity;
    task.map = map_of(map);
    task.features = at(std::get<0>(features));
    task.type = type_of(std::get<1>(features));
    task.channels = channels;
    const Features to = features_of(out);
    task.out = const_cast<void*>(to.data);
    task.out_type = to.type;
    task.out_range = to.range;
    task.order = ints(order);
    add("place_rows", [=](cudaStream_t s) { return place_rows(task, s); });
  }

  void tables(const std::vector<TableNumbers>& numbers) {
    std::vector<TableTask> tasks;
    for (const auto& [out, count, capacity, map, order, geometry, table] : numbers) {
      TableTask task;
      task.out_indices = ints(out);
      task.out_count = ints(count);
      task.capacity = capacity;
      task.in = map_of(map);
      task.in_order = ints(order);
      task.geometry = geometry_of(geometry);
      task.table = ints(table);
      tasks.push_back(task);
    }
    add("build_tables", [=](cudaStream_t s) {
      return build_tables(tasks.data(), static_cast<int>(tasks.size()), s);
    });
  }

  void transpose(Address table, int32_t volume, Address out_count, int64_t out_capacity,
                 int64_t in_capacity, Address transposed, Address errors) {
    add("transpose_table", [=](cudaStream_t s) {
      return transpose_table(ints(table), volume, ints(out_count), out_capacity, in_capacity,
                             ints(transposed), ints(errors), s);
    });
  }

  // Weight, scale and bias are constants: complete before the program runs for the first time.
  void convolution(const FeatureNumbers& input, int32_t in_channels, int32_t out_channels,
                   Address weight, Address table, int32_t volume, Address out_count,
                   int64_t capacity, Address scale, Address bias,
                   const FeatureNumbers& residual, std::pair<float, float> add_ranges,
                   const std::string& activation, float slope, const FeatureNumbers& output,
                   bool overlap) {
    ConvolutionTask task;
    const Features from = features_of(input);
    task.type = from.type;
    task.features = from.data;
    task.in_channels = in_channels;
    task.out_channels = out_channels;
    task.weight = at(weight);
    task.table = ints(table);
    task.settled_weights = true;
    task.volume = volume;
    task.out_count = ints(out_count);
    task.capacity = capacity;
    task.scale = at<float>(scale);
    task.bias = at<float>(bias);
    task.residual = features_of(residual);
    task.sum_range = add_ranges.first;
    task.residual_range = add_ranges.second;
    task.activation = activation_of(activation);
    task.slope = slope;
    task.output = features_of(output);
    task.overlap = overlap;
    add("convolve", [=](cudaStream_t s) { return convolve(task, s); });
  }

  void convert(const FeatureNumbers& from, int64_t from_stride, Address order, Address count,
               int64_t capacity, int32_t channels, const FeatureNumbers& to, int64_t to_stride) {
    const ConvertTask task{features_of(from), from_stride,     ints(order), ints(count), capacity,
                           channels,          features_of(to), to_stride};
    add("convert_rows", [=](cudaStream_t s) { return convert_rows(task, s); });
  }

  // Rows of float32 as two halves each, side by side.
  void split(Address from, Address count, int64_t capacity, int32_t channels, Address to,
             bool overlap) {
    add("split_rows", [=](cudaStream_t s) {
      return split_rows(at<float>(from), ints(count), capacity, channels, at(to), overlap, s);
    });
  }

  void sum(const FeatureNumbers& a, const FeatureNumbers& b, std::pair<float, float> ranges,
           Address count, int64_t capacity, int32_t channels, const std::string& activation,
           float slope, const FeatureNumbers& output) {
    const AddTask task{features_of(a), features_of(b), ranges.first, ranges.second,
                       ints(count),    capacity,       channels,     activation_of(activation),
                       slope,          features_of(output)};
    add("add_rows", [=](cudaStream_t s) { return add_rows(task, s); });
  }

  void scatter(const MapNumbers& map, Address order, int64_t capacity,
               const FeatureNumbers& features, int64_t stride, int32_t channels,
               const std::array<int32_t, 3>& axes, Address dense, const std::string& type,
               bool cleared, bool overlap) {
    DenseTask task;
    task.map = map_of(map);
    task.order = ints(order);
    task.capacity = capacity;
    task.features = features_of(features);
    task.stride = stride;
    task.channels = channels;
    for (size_t axis = 0; axis < 3; ++axis) task.axes[axis] = axes[axis];
    task.dense = at(dense);
    task.dense_type = type_of(type);
    task.cleared = cleared;
    task.overlap = overlap;
    add("scatter_dense", [=](cudaStream_t s) { return scatter_dense(task, s); });
  }

  // `rules`: low, high, size (x y z), grid (x y z), max_points, max_voxels.
  void voxels(const std::tuple<Address, std::string>& points, Address point_count,
              int64_t point_capacity, int32_t channels,
              const std::array<std::array<float, 3>, 3>& limits, const Axes& grid,
              int64_t max_points, int64_t max_voxels, int32_t batch, bool zyx, Address first_row,
              int64_t capacity, Address indices, Address means, Address count, Address statistics,
              Address workspace, Address errors) {
    VoxelizeTask task;
    task.points = at(std::get<0>(points));
    task.point_type = type_of(std::get<1>(points));
    task.channels = channels;
    task.point_count = ints(point_count);
    task.point_capacity = point_capacity;
    task.rules = rules_of(limits, grid, max_points, max_voxels);
    task.batch = batch;
    task.zyx = zyx;
    task.first_row = ints(first_row);
    task.capacity = capacity;
    task.indices = ints(indices);
    task.means = at<float>(means);
    task.count = ints(count);
    task.statistics = ints(statistics);
    task.workspace = at(workspace);
    task.errors = ints(errors);
    add("voxelize", [=](cudaStream_t s) { return voxelize(task, s); });
  }

  static VoxelRules rules_of(const std::array<std::array<float, 3>, 3>& limits, const Axes& grid,
                             int64_t max_points, int64_t max_voxels) {
    VoxelRules rules;
    for (size_t axis = 0; axis < 3; ++axis) {
      rules.low[axis] = limits[0][axis];
      rules.high[axis] = limits[1][axis];
      rules.size[axis] = limits[2][axis];
    }
    rules.grid = grid;
    rules.max_points = max_points;
    rules.max_voxels = max_voxels;
    return rules;
  }
};

void pack(const std::string& type, Address weight, const std::string& source, int32_t volume,
          int32_t in_channels, int32_t out_channels, Address packed, Address stream) {
  require(pack_weights(type_of(type), at(weight), type_of(source), volume, in_channels,
                       out_channels, false, at(packed), stream_of(stream)),
          "pack_weights");
}

}  // namespace
}  // namespace s4d::sparse::cuda

PYBIND11_MODULE(_sparse_cuda, module) {
  using namespace s4d::sparse::cuda;
  py::register_exception<CudaFailure>(module, "CudaFailure", PyExc_RuntimeError);
  py::class_<Program>(module, "Program")
      .def(py::init<>())
      .def("__len__", &Program::size)
      .def("clear", &Program::clear)
      .def("store", &Program::store)
      .def("copy", &Program::copy)
      .def("guard_counts", &Program::guard)
      .def("check_finite", &Program::check_finite)
      .def("build_sites", &Program::sites)
      .def("extend_sites", &Program::later_sites)
      .def("strided_sites", &Program::one_level)
      .def("place_rows", &Program::place)
      .def("build_tables", &Program::tables)
      .def("transpose_table", &Program::transpose)
      .def("convolve", &Program::convolution)
      .def("convert_rows", &Program::convert)
      .def("add_rows", &Program::sum)
      .def("scatter_dense", &Program::scatter)
      .def("voxelize", &Program::voxels)
      .def("split_rows", &Program::split)
      .def("fork", &Program::fork)
      .def("aside", &Program::aside)
      .def("back", &Program::back)
      .def("join", &Program::join)
      .def("run",
           [](const Program& program, Address stream, Address side, Address event) {
             py::gil_scoped_release release;
             program.run(stream_of(stream), stream_of(side), reinterpret_cast<cudaEvent_t>(event));
           },
           py::arg("stream"), py::arg("side") = 0, py::arg("event") = 0)
      .def("profile", [](const Program& program, Address stream, int rounds) {
        return program.profile(stream_of(stream), rounds);
      });
  module.def("pack_weights", &pack);
  module.def("padded_channels", [](const std::string& type, int32_t channels) {
    return padded_channels(type_of(type), channels);
  });
  module.def("packed_weight_bytes",
             [](const std::string& type, int32_t volume, int32_t in_channels,
                int32_t out_channels) {
               return packed_weight_bytes(type_of(type), volume, in_channels, out_channels);
             });
  module.def("site_map_bytes",
             [](const GridNumbers& grid) { return site_map_bytes(grid_of(grid)); });
  module.def("voxelize_bytes",
             [](const std::array<std::array<float, 3>, 3>& limits, const s4d::sparse::Axes& grid,
                int64_t max_points, int64_t max_voxels, int64_t point_capacity) {
               return voxelize_bytes(Program::rules_of(limits, grid, max_points, max_voxels),
                                     point_capacity);
             });
  bind_dlpack(module);
}
