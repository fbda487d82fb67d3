#include "core/sparse_conv/voxelize.h"
#include "sparse_check.h"

namespace {

void check_voxelize(const std::vector<float>& points, int channels, const cpu::VoxelRules& rules,
                    int64_t expected, bool halves, int clouds = 1) {
  const int64_t n = int64_t(points.size()) / channels;
  const auto want = cpu::voxelize(points.data(), n, channels, rules);
  const int64_t m = int64_t(want.kept.size()), rows = m * clouds;
  Array<float> d_points(points);
  std::vector<__half> h(points.size());
  for (size_t i = 0; i < h.size(); ++i) h[i] = __float2half(points[i]);
  Array<__half> d_halves(h);
  Array<char> workspace(dev::voxelize_bytes(rules, n));
  Array<int32_t> indices(4 * rows), kept(rows), total(rows), count(1), statistics(3),
      errors(dev::kErrorSlots);
  Array<float> means(rows * channels);
  const int padded = dev::padded_channels(DType::f16, channels);
  Array<__half> features(rows * padded);
  const auto point_count = number(n);
  errors.fill(0);
  count.fill(0);
  for (int cloud = 0; cloud < clouds; ++cloud) {
    dev::VoxelizeTask t;
    t.points = halves ? static_cast<const void*>(d_halves) : d_points;
    t.point_type = halves ? DType::f16 : DType::f32;
    t.channels = channels;
    t.point_count = point_count;
    t.point_capacity = n;
    t.rules = rules;
    t.batch = cloud;
    t.first_row = count;
    t.capacity = rows;
    t.indices = indices;
    t.means = means;
    t.features = features;
    t.kept = kept;
    t.total = total;
    t.count = count;
    t.statistics = statistics;
    t.workspace = workspace;
    t.errors = errors;
    OK(dev::voxelize(t, 0));
  }
  bool same = count.host()[0] == rows && errors.host()[dev::kRowsLost] == 0 &&
              (expected < 0 || m == expected);
  const auto h_indices = indices.host(), h_kept = kept.host(), h_total = total.host();
  const auto h_means = means.host();
  const auto h_features = features.host();
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t j = i % m;
    const int32_t* c = &want.cells[3 * j];
    const int32_t* r = &h_indices[4 * i];
    same &= r[0] == i / m && r[1] == c[2] && r[2] == c[1] && r[3] == c[0] &&
            h_kept[i] == want.kept[j] && h_total[i] == want.total[j];
    for (int k = 0; k < padded; ++k) {
      const float mean = k < channels ? want.means[j * channels + k] : 0.0f;
      if (k < channels) same &= h_means[i * channels + k] == mean;
      same &= __half2float(h_features[i * padded + k]) == to_half(mean);
    }
  }
  const auto s = statistics.host();
  same &= s[0] == want.refused_voxels && s[1] == want.refused_points && s[2] == want.outside_points;
  std::printf("voxelize %lld points, %lld voxels, %lld refused, %lld outside, max %lld a voxel: %s\n",
              static_cast<long long>(n), static_cast<long long>(m),
              static_cast<long long>(want.refused_voxels),
              static_cast<long long>(want.outside_points),
              static_cast<long long>(rules.max_points), same ? "bit-equal" : "WRONG");
  expect(same, "voxelize");
}

std::vector<float> random_points(size_t n) {
  std::normal_distribution<float> normal(0.0f, 20.0f);
  std::vector<float> p(n * 5);
  for (size_t i = 0; i < p.size(); ++i) p[i] = to_half(i % 5 == 2 ? normal(rng) / 10 : normal(rng));
  for (size_t i = 0; i + 5 < n; i += 97) p[5 * i] = NAN;
  // Crowded cells.
  for (size_t i = 0; i < n / 4; ++i) {
    for (int k = 0; k < 3; ++k) p[5 * (i * 4) + k] = to_half(1.01f + 0.2f * float(i % 5) * (k == 0));
  }
  return p;
}

cpu::VoxelRules nuscenes_rules(int64_t max_points, int64_t max_voxels) {
  return {{-54, -54, -5}, {54, 54, 3}, {0.075f, 0.075f, 0.2f}, {1440, 1440, 40}, max_points,
          max_voxels};
}

}  // namespace

void check_voxels(bool brief, const char* cloud) {
  check_voxelize(random_points(brief ? 2000 : 60000), 5, nuscenes_rules(10, 0), -1, false);
  check_voxelize(random_points(brief ? 2000 : 60000), 5, nuscenes_rules(3, 700), -1, true, 3);
  check_voxelize(random_points(1), 5, nuscenes_rules(1, 0), -1, false);
  if (cloud) {
    std::ifstream file(cloud, std::ios::binary | std::ios::ate);
    std::vector<__half> h(file ? size_t(file.tellg()) / 2 : 0);
    file.seekg(0);
    file.read(reinterpret_cast<char*>(h.data()), std::streamsize(h.size() * 2));
    std::vector<float> p(h.size());
    for (size_t i = 0; i < p.size(); ++i) p[i] = __half2float(h[i]);
    check_voxelize(p, 5, nuscenes_rules(10, 160000), 105086, true);
    check_voxelize(p, 5, nuscenes_rules(5, 40000), 40000, false, 2);
  }
}
