// Shape, type and level-table checks, shared by every door.
#include "deformable_aggregation.h"

#include <cstring>
#include <sstream>

namespace s4d {
namespace {

std::string text(const TensorShape& tensor) {
  std::ostringstream out;
  out << "(";
  for (int64_t i = 0; i < tensor.rank; ++i) out << (i ? ", " : "") << tensor.sizes[i];
  out << ") " << name(tensor.type);
  return out.str();
}

bool is_float(DType type) {
  return type == DType::f32 || type == DType::f64 || type == DType::f16 || type == DType::bf16;
}

bool is_index(DType type) { return type == DType::i32 || type == DType::i64; }

int64_t index_at(DType type, const void* data, int64_t i) {
  if (type == DType::i64) return static_cast<const int64_t*>(data)[i];
  return static_cast<const int32_t*>(data)[i];
}

}  // namespace

std::string check_aggregation(TensorShape features, TensorShape spatial_shapes,
                              TensorShape level_start_index, TensorShape locations,
                              TensorShape weights, AggregationShape* shape) {
  const auto fail = [](const std::string& expected, const std::string& got) {
    return "deformable_aggregation: expected " + expected + "; got " + got;
  };
  if (features.rank != 3) return fail("features (B, F, C)", text(features));
  if (spatial_shapes.rank != 3 || spatial_shapes.sizes[2] != 2) {
    return fail("spatial_shapes (N, L, 2)", text(spatial_shapes));
  }
  const int64_t batch = features.sizes[0], channels = features.sizes[2];
  const int64_t views = spatial_shapes.sizes[0], levels = spatial_shapes.sizes[1];
  if (views < 1 || levels < 1) {
    return fail("at least one view and one level", "spatial_shapes " + text(spatial_shapes));
  }
  const std::string sizes = "B=" + std::to_string(batch) + ", N=" + std::to_string(views) +
                            ", L=" + std::to_string(levels);
  if (level_start_index.rank != 2 || level_start_index.sizes[0] != views ||
      level_start_index.sizes[1] != levels) {
    return fail("level_start_index (N, L) with " + sizes, text(level_start_index));
  }
  if (locations.rank != 5 || locations.sizes[0] != batch || locations.sizes[3] != views ||
      locations.sizes[4] != 2) {
    return fail("sampling_locations (B, A, P, N, 2) with " + sizes, text(locations));
  }
  const int64_t anchors = locations.sizes[1], points = locations.sizes[2];
  if (weights.rank != 6 || weights.sizes[0] != batch || weights.sizes[1] != anchors ||
      weights.sizes[2] != points || weights.sizes[3] != views || weights.sizes[4] != levels) {
    return fail("weights (B, A, P, N, L, G) with " + sizes + ", A=" + std::to_string(anchors) +
                    ", P=" + std::to_string(points),
                text(weights));
  }
  const int64_t groups = weights.sizes[5];
  if (channels < 1 || groups < 1 || channels % groups != 0) {
    return fail("channels that the groups divide", std::to_string(channels) + " channels and " +
                                                       std::to_string(groups) + " groups");
  }
  if (!is_index(spatial_shapes.type) || level_start_index.type != spatial_shapes.type) {
    return fail("spatial_shapes and level_start_index both int32 or both int64",
                std::string(name(spatial_shapes.type)) + " and " + name(level_start_index.type));
  }
  if ((features.type != DType::i8 && !is_float(features.type)) || !is_float(locations.type) ||
      !is_float(weights.type)) {
    return fail("float features, sampling_locations and weights",
                std::string(name(features.type)) + ", " + name(locations.type) + " and " +
                    name(weights.type));
  }
  const int doubles = (features.type == DType::f64) + (locations.type == DType::f64) +
                      (weights.type == DType::f64);
  if (doubles != 0 && doubles != 3) {
    return fail("features, sampling_locations and weights all float64, or none",
                std::string(name(features.type)) + ", " + name(locations.type) + " and " +
                    name(weights.type));
  }
  shape->batch = batch;
  shape->rows = features.sizes[1];
  shape->channels = channels;
  shape->views = views;
  shape->levels = levels;
  shape->anchors = anchors;
  shape->points = points;
  shape->groups = groups;
  return {};
}

std::string check_level_table(const AggregationShape& shape, DType index_type,
                              const void* spatial_shapes, const void* level_start_index) {
  for (int64_t i = 0; i < shape.views * shape.levels; ++i) {
    const int64_t height = index_at(index_type, spatial_shapes, 2 * i);
    const int64_t width = index_at(index_type, spatial_shapes, 2 * i + 1);
    const int64_t start = index_at(index_type, level_start_index, i);
    // Bounded by rows before they are multiplied, so that the product cannot overflow unseen.
    const bool inside = height >= 1 && width >= 1 && start >= 0 && height <= shape.rows &&
                        width <= shape.rows / height && start <= shape.rows - height * width;
    if (!inside) {
      std::ostringstream out;
      out << "deformable_aggregation: view " << i / shape.levels << ", level "
          << i % shape.levels << " (" << height << " x " << width << " from row " << start
          << ") does not lie inside the " << shape.rows << " rows of features";
      return out.str();
    }
  }
  return {};
}

}  // namespace s4d
