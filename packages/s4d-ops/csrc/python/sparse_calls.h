// The stages of the core as calls of a list (cuda_program.h).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/sparse_input/input_cuda.h"
#include "cuda_program.h"
#include "sparse_numbers.h"

namespace s4d::sparse::cuda {

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

  // kBuild: build_sites or extend_sites.
  template <auto kBuild>
  void sites(Address indices, Address count, int64_t capacity,
             const std::vector<LevelNumbers>& numbers, bool cleared, Address errors) {
    std::vector<SiteLevel> levels;
    for (const LevelNumbers& n : numbers) levels.push_back(level_of(n));
    add(kBuild == &build_sites ? "build_sites" : "extend_sites", [=](cudaStream_t s) {
      return kBuild(ints(indices), ints(count), capacity, levels.data(),
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
  // `halves`: 0, or where the float32 output goes as two halves a value; then output may be 0.
  void convolution(const FeatureNumbers& input, int32_t in_channels, int32_t out_channels,
                   Address weight, Address table, int32_t volume, Address out_count,
                   int64_t capacity, Address scale, Address bias,
                   const FeatureNumbers& residual, std::pair<float, float> add_ranges,
                   const std::string& activation, float slope, const FeatureNumbers& output,
                   Address halves, bool overlap) {
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
    task.halves = at(halves);
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
              const LimitNumbers& limits, const Axes& grid, int64_t max_points,
              int64_t max_voxels, int32_t batch, bool zyx, Address first_row, int64_t capacity,
              Address indices, Address means, Address count, Address statistics,
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
};

}  // namespace s4d::sparse::cuda
