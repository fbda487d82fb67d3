// Deformable aggregation, forward, with 16-byte loads.
//
// One block computes one anchor of one sample, for one slice of its channels. It scans the (view,
// point) pairs once, keeps the visible ones in order, and stages for a few of them at a time what
// every channel shares: for each (level, point) the vector offset of the four neighbours and their
// bilinear shares, and the weights in fp32. Then each warp takes (level, point) entries in turn;
// its lanes read neighbouring channels, eight 16-byte loads in flight each. Entries run level by
// level and view by view, so the rows that close points share are still in L1. The warps' sums are
// added in a fixed order at the end.
#include "deformable_aggregation.cuh"

namespace s4d::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int64_t kFewItems = 2048;
constexpr int kStagedPoints = 64;
constexpr int kStagedBytes = 16384;  // of entries and weights, if one point needs no more

struct ForwardArgs {
  AggregationForward call;
  uint32_t vectors;      // 16-byte vectors in a feature row
  int chunk_points;      // visible points staged at a time
  int levels;
  int slice_groups;      // groups that a slice of channels touches, from its first one on
  bool four_weights;     // weights can be read as float4
  Divisor by_points, by_levels, by_weights, by_slice_groups, by_group_vectors;
};

struct Entry {
  // Offsets count 16-byte vectors. base is the upper left neighbour, from the sample's first row;
  // a neighbour outside the map is replaced by the one inside, each taking half of its share.
  uint32_t base, step_x, step_y;
  uint32_t weight;  // index of the entry's first weight
  float4 share;     // upper left, upper right, lower left, lower right
};

struct VisiblePoint {
  uint32_t index;  // point * views + view
  uint32_t view;
  float x, y;
};

__device__ inline Entry make_entry(const ForwardArgs& args, const VisiblePoint& point,
                                   const StagedLevel& map, uint32_t weight) {
  Entry entry = {0, 0, 0, weight, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
  if (map.height == 0) return entry;
  const Bilinear<float, int32_t> at = locate(point.x, point.y, map.height, map.width);
  float left = 1.0f - at.fx, right = at.fx, up = 1.0f - at.fy, down = at.fy;
  if (!at.left) left = right = 0.5f * at.fx;
  if (!at.right) left = right = 0.5f * (1.0f - at.fx);
  if (!at.up) up = down = 0.5f * at.fy;
  if (!at.down) up = down = 0.5f * (1.0f - at.fy);
  const uint32_t x = at.left ? at.x0 : 0;
  const uint32_t y = at.up ? at.y0 : 0;
  entry.base = (map.first + y * static_cast<uint32_t>(map.width) + x) * args.vectors;
  entry.step_x = at.left && at.right ? args.vectors : 0;
  entry.step_y = at.up && at.down ? static_cast<uint32_t>(map.width) * args.vectors : 0;
  entry.share = make_float4(up * left, up * right, down * left, down * right);
  return entry;
}

// The weights of the staged points for the groups of this slice, in fp32.
__device__ inline void stage_weights(const ForwardArgs& args, const VisiblePoint* visible,
                                     int points, int64_t first_pair, uint32_t first_group,
                                     float* weights) {
  const AggregationForward& call = args.call;
  const uint32_t groups = static_cast<uint32_t>(call.shape.groups);
  const uint32_t per_point = args.levels * groups;
  const uint32_t staged = args.by_weights.value;  // levels * slice_groups
  const float scale = call.feature_scale;
  if (args.four_weights) {
    const float4* from = static_cast<const float4*>(call.weights) + first_pair * (per_point / 4);
    for (uint32_t i = 4 * threadIdx.x; i < points * staged; i += 4 * blockDim.x) {
      const uint32_t k = args.by_weights.divide(i);
      const uint32_t rest = i - k * staged;
      const uint32_t level = args.by_slice_groups.divide(rest);
      const uint32_t at = level * groups + first_group + rest - level * args.slice_groups;
      float4 four = __ldg(from + (static_cast<int64_t>(visible[k].index) * per_point + at) / 4);
      four.x *= scale;
      four.y *= scale;
      four.z *= scale;
      four.w *= scale;
      *reinterpret_cast<float4*>(weights + i) = four;
    }
    return;
  }
  for (uint32_t i = threadIdx.x; i < points * staged; i += blockDim.x) {
    const uint32_t k = args.by_weights.divide(i);
    const uint32_t rest = i - k * staged;
    const uint32_t level = args.by_slice_groups.divide(rest);
    const uint32_t at = level * groups + first_group + rest - level * args.slice_groups;
    const int64_t index = (first_pair + visible[k].index) * per_point + at;
    weights[i] = load_float(call.weights, index, call.weight_type) * scale;
  }
}

// One sample of kSize channels: four loads of 16 bytes.
template <typename Feature>
struct Corners {
  uint4 raw[4];
  float4 share;
  float weight;

  // `rows` and `weights` point at this lane's vector and group.
  __device__ void load(const Entry& entry, const uint4* rows, const float* weights) {
    const uint4* up = rows + entry.base;
    const uint4* down = up + entry.step_y;
    raw[0] = __ldg(up);
    raw[1] = __ldg(up + entry.step_x);
    raw[2] = __ldg(down);
    raw[3] = __ldg(down + entry.step_x);
    weight = weights[entry.weight];
    share = entry.share;
  }

  __device__ void add_to(float (&sum)[Vector<Feature>::kSize]) const {
    constexpr int kSize = Vector<Feature>::kSize;
    const float shares[4] = {share.x, share.y, share.z, share.w};
    float value[kSize];
    if constexpr (kSize == 8) {
      // Fewer products. Their rounding is far below that of a half result, but would be seen in a
      // float32 one.
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Vector<Feature>::unpack(raw[k], value);
        const float factor = weight * shares[k];
#pragma unroll
        for (int i = 0; i < kSize; ++i) sum[i] = fmaf(factor, value[i], sum[i]);
      }
    } else {
      float sample[kSize];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Vector<Feature>::unpack(raw[k], value);
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          sample[i] = k == 0 ? shares[0] * value[i] : fmaf(shares[k], value[i], sample[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum[i] = fmaf(weight, sample[i], sum[i]);
    }
  }
};

// Shared memory: the level table, visible points of one scan round, then staged entries and
// weights; the last area is reused for the sums of the warps.
template <typename Feature, int kLanes>
__global__ void __launch_bounds__(kMaxThreads, 4)
    forward_kernel(const __grid_constant__ ForwardArgs args) {
  constexpr int kSize = Vector<Feature>::kSize;
  constexpr int kRowsPerWarp = 32 / kLanes;
  extern __shared__ uint4 shared[];
  __shared__ int scratch[kMaxThreads / 32];
  StagedLevel* maps = reinterpret_cast<StagedLevel*>(shared);
  VisiblePoint* visible = reinterpret_cast<VisiblePoint*>(
      maps + args.call.shape.views * args.call.shape.levels);
  Entry* entries = reinterpret_cast<Entry*>(visible + blockDim.x);
  const AggregationForward& call = args.call;
  const AggregationShape& shape = call.shape;
  float* weights = reinterpret_cast<float*>(entries + args.chunk_points * args.levels);
  float* partial = reinterpret_cast<float*>(entries);

  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const int warps = blockDim.x >> 5;
  const int stride = warps * kRowsPerWarp;
  const uint32_t pairs = static_cast<uint32_t>(shape.points * shape.views);
  const uint32_t first_group =
      args.slice_groups == shape.groups
          ? 0
          : args.by_group_vectors.divide(blockIdx.y * kLanes);
  const uint32_t slot = blockIdx.y * kLanes + lane % kLanes;
  const uint32_t vector = slot < args.vectors ? slot : args.vectors - 1;
  const float* lane_weights = weights + args.by_group_vectors.divide(vector) - first_group;
  // Visible to all after the first barrier of the scan.
  stage_levels(call.spatial_shapes, call.level_start_index, call.index_type, shape, maps);

  const int64_t items = shape.batch * shape.anchors;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t sample = item / shape.anchors;
    const uint4* rows =
        static_cast<const uint4*>(call.features) + sample * shape.rows * args.vectors + vector;
    const int64_t first_pair = item * pairs;
    float sum[kSize] = {};

    for (uint32_t scanned = 0; scanned < pairs; scanned += blockDim.x) {
      VisiblePoint mine = {0, 0, -1.0f, -1.0f};
      const uint32_t pair = scanned + thread;
      if (pair < pairs) {
        mine.view = args.by_points.divide(pair);
        const uint32_t point = pair - mine.view * args.by_points.value;
        mine.index = point * static_cast<uint32_t>(shape.views) + mine.view;
        const int64_t at = 2 * (first_pair + mine.index);
        mine.x = load_float(call.locations, at, call.location_type);
        mine.y = load_float(call.locations, at + 1, call.location_type);
      }
      const bool seen = counts(mine.x, mine.y);
      int count = 0;
      const int place = compact(seen, scratch, &count);
      if (seen) visible[place] = mine;

      for (int begin = 0; begin < count; begin += args.chunk_points) {
        const int points = min(args.chunk_points, count - begin);
        const int total = points * args.levels;
        __syncthreads();  // `visible` is written, the previous chunk is read
        for (int i = thread; i < total; i += blockDim.x) {
          const uint32_t k = args.by_levels.divide(i);
          const uint32_t level = i - k * args.by_levels.value;
          const VisiblePoint& point = visible[begin + k];
          entries[level * points + k] = make_entry(
              args, point, maps[point.view * args.by_levels.value + level], i * args.slice_groups);
        }
        stage_weights(args, visible + begin, points, first_pair, first_group, weights);
        __syncthreads();
        int i = warp * kRowsPerWarp + lane / kLanes;
        for (; i + stride < total; i += 2 * stride) {
          Corners<Feature> one, two;
          one.load(entries[i], rows, lane_weights);
          two.load(entries[i + stride], rows, lane_weights);
          one.add_to(sum);
          two.add_to(sum);
        }
        if (i < total) {
          Corners<Feature> one;
          one.load(entries[i], rows, lane_weights);
          one.add_to(sum);
        }
      }
      __syncthreads();  // `visible` and the staged chunk may be overwritten
    }

    // Rows of a warp, then warps, in order.
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
#pragma unroll
      for (int offset = kLanes; offset < 32; offset *= 2) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
      }
      if (lane < kLanes) partial[(warp * kSize + i) * kLanes + lane] = sum[i];
    }
    __syncthreads();
    constexpr int kChannels = kSize * kLanes;
    for (int i = thread; i < kChannels; i += blockDim.x) {
      const int at = i % kSize * kLanes + i / kSize;
      float result = 0.0f;
      for (int w = 0; w < warps; ++w) result += partial[w * kChannels + at];
      const int64_t channel = static_cast<int64_t>(blockIdx.y) * kChannels + i;
      if (channel < shape.channels) {
        store_float(call.output, item * shape.channels + channel, call.output_type, result);
      }
    }
    __syncthreads();
  }
}

template <typename Feature, int kLanes>
std::string launch(ForwardArgs& args, bool* taken) {
  const AggregationShape& shape = args.call.shape;
  constexpr uint32_t slice = kLanes;
  const uint32_t group_vectors = args.by_group_vectors.value;
  int64_t groups = shape.groups;
  if (slice % group_vectors == 0 && shape.groups % (slice / group_vectors) == 0) {
    groups = slice / group_vectors;
  } else if (group_vectors % slice == 0) {
    groups = 1;
  }
  args.slice_groups = static_cast<int>(groups);
  args.by_slice_groups = Divisor(groups);
  args.by_weights = Divisor(shape.levels * groups);
  args.four_weights = args.call.weight_type == DType::f32 && aligned16(args.call.weights) &&
                      shape.levels * shape.groups % 4 == 0 &&
                      (groups % 4 == 0 || groups == shape.groups);

  // A call of few anchors takes as long as its most visible anchor: more warps on each. With many
  // anchors smaller blocks wait less at barriers. (Measured on an H200.)
  const bool few = shape.batch * shape.anchors <= kFewItems;
  const int threads = few && kLanes == 32 ? kMaxThreads : 128;
  const int64_t point_bytes =
      shape.levels * static_cast<int64_t>(sizeof(Entry)) + shape.levels * groups * 4;
  int64_t chunk = kStagedBytes / point_bytes;
  chunk = chunk < 1 ? 1 : (chunk > kStagedPoints ? kStagedPoints : chunk);
  int64_t staged = chunk * point_bytes;
  const int64_t sums = int64_t{4} * (threads / 32) * slice * Vector<Feature>::kSize;
  if (staged < sums) staged = sums;
  const int64_t bytes = shape.views * shape.levels * static_cast<int64_t>(sizeof(StagedLevel)) +
                        threads * static_cast<int64_t>(sizeof(VisiblePoint)) + staged;
  if (bytes > 48 * 1024) return {};
  *taken = true;
  args.chunk_points = static_cast<int>(chunk);
  const int64_t items = shape.batch * shape.anchors;
  const dim3 grid(static_cast<uint32_t>(items < 0x7fffffff ? items : 0x7fffffff),
                  (args.vectors + slice - 1) / slice);
  forward_kernel<Feature, kLanes>
      <<<grid, threads, bytes, static_cast<cudaStream_t>(args.call.stream)>>>(args);
  return status(cudaGetLastError(), "deformable aggregation forward");
}

template <typename Feature>
std::string launch_lanes(ForwardArgs& args, bool* taken) {
  const bool few = args.call.shape.batch * args.call.shape.anchors <= kFewItems;
  if (args.vectors <= 8) return launch<Feature, 8>(args, taken);
  // Half types: two slices, for work that spreads more evenly.
  if (args.vectors <= 16 || (few && Vector<Feature>::kSize == 8)) {
    return launch<Feature, 16>(args, taken);
  }
  return launch<Feature, 32>(args, taken);
}

}  // namespace

std::string launch_vector_forward(const AggregationForward& call, bool* taken) {
  *taken = false;
  const AggregationShape& shape = call.shape;
  if (!fits_vectors(shape, call.feature_type, call.features)) return {};
  ForwardArgs args = {};
  args.call = call;
  const int64_t size = static_cast<int64_t>(size_of(call.feature_type));
  args.vectors = static_cast<uint32_t>(shape.channels * size / 16);
  args.levels = static_cast<int>(shape.levels);
  args.by_points = Divisor(shape.points);
  args.by_levels = Divisor(shape.levels);
  args.by_group_vectors = Divisor(args.vectors / static_cast<uint32_t>(shape.groups));
  switch (call.feature_type) {
    case DType::f32: return launch_lanes<float>(args, taken);
    case DType::f16: return launch_lanes<__half>(args, taken);
    case DType::bf16: return launch_lanes<__nv_bfloat16>(args, taken);
    case DType::i8: return launch_lanes<int8_t>(args, taken);
    default: return {};
  }
}

}  // namespace s4d::cuda
