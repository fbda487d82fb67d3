// Door of the sparse convolution core on CUDA for Python without a framework: a Program is a list
// of the core's calls (sparse_calls.h). Addresses and streams are Python integers; the owner of the
// memory is the caller. s4d_ops.sparse_cuda gives the module its Python names.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "sparse_calls.h"

namespace py = pybind11;

void bind_dlpack(py::module_& module);

namespace s4d::sparse::cuda {
namespace {

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
      .def("build_sites", &Program::sites<&build_sites>)
      .def("extend_sites", &Program::sites<&extend_sites>)
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
             [](const LimitNumbers& limits, const s4d::sparse::Axes& grid, int64_t max_points,
                int64_t max_voxels, int64_t point_capacity) {
               return voxelize_bytes(rules_of(limits, grid, max_points, max_voxels),
                                     point_capacity);
             });
  bind_dlpack(module);
}
