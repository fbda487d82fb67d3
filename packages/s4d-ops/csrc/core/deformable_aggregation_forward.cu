// Forward of deformable aggregation with 16-byte loads.
//
// One block computes one anchor of one sample, for one slice of up to 32 vectors of channels.
// It scans the (view, point) pairs once, keeps the visible ones in order, and stages for a few of
// them at a time what every channel shares: for each (level, point) the vector offset of the four
// neighbours and their bilinear shares, and the weights in fp32. Then each warp takes (level,
// point) entries in turn; its lanes read neighbouring channels. Two entries, eight 16-byte loads
// per lane, are in flight at once. Entries run level by level and view by view, so the rows that
// close points share are still in L1. The warps' sums are added in a fixed order at the end.
#include "deformable_aggregation.cuh"

namespace s4d::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kStagedBytes = 8192;  // of entries and weights, if one point needs no more

struct ForwardArgs {
  AggregationForward call;
  uint32_t vectors;            // 16-byte vectors in a feature row
  uint32_t vectors_per_group;
  int chunk_points;            // visible points staged at a time
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
  float x, y;
};

__device__ inline Entry make_entry(const ForwardArgs& args, const VisiblePoint& point, int level,
                                   uint32_t weight) {
  const AggregationForward& call = args.call;
  const AggregationShape& shape = call.shape;
  const uint32_t view = point.index % static_cast<uint32_t>(shape.views);
  const Level map = load_level(call.spatial_shapes, call.level_start_index, call.index_type,
                               view * shape.levels + level, shape.rows);
  Entry entry = {0, 0, 0, weight, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
  if (map.height == 0) return entry;
  const Bilinear<float> at = locate(point.x, point.y, map.height, map.width);
  float left = 1.0f - at.fx, right = at.fx, up = 1.0f - at.fy, down = at.fy;
  if (!at.left) left = right = 0.5f * at.fx;
  if (!at.right) left = right = 0.5f * (1.0f - at.fx);
  if (!at.up) up = down = 0.5f * at.fy;
  if (!at.down) up = down = 0.5f * (1.0f - at.fy);
  const int64_t x = at.left ? at.x0 : 0;
  const int64_t y = at.up ? at.y0 : 0;
  entry.base = static_cast<uint32_t>(map.first + y * map.width + x) * args.vectors;
  entry.step_x = at.left && at.right ? args.vectors : 0;
  entry.step_y = at.up && at.down ? static_cast<uint32_t>(map.width) * args.vectors : 0;
  entry.share = make_float4(up * left, up * right, down * left, down * right);
  return entry;
}

template <typename Feature>
struct Corners {
  uint4 raw[4];
  float4 share;
  float weight;

  __device__ void load(const Entry& entry, const uint4* row, const float* weights) {
    const uint4* at = row + entry.base;
    raw[0] = __ldg(at);
    raw[1] = __ldg(at + entry.step_x);
    at += entry.step_y;
    raw[2] = __ldg(at);
    raw[3] = __ldg(at + entry.step_x);
    share = entry.share;
    weight = weights[entry.weight];
  }

  __device__ void add_to(float (&sum)[Vector<Feature>::kSize]) const {
    constexpr int kSize = Vector<Feature>::kSize;
    float sample[kSize], value[kSize];
    Vector<Feature>::unpack(raw[0], value);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sample[i] = share.x * value[i];
    Vector<Feature>::unpack(raw[1], value);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sample[i] = fmaf(share.y, value[i], sample[i]);
    Vector<Feature>::unpack(raw[2], value);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sample[i] = fmaf(share.z, value[i], sample[i]);
    Vector<Feature>::unpack(raw[3], value);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sample[i] = fmaf(share.w, value[i], sample[i]);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum[i] = fmaf(weight, sample[i], sum[i]);
  }
};

// Shared memory: visible points of one scan round, then staged entries and weights; the latter
// area is reused for the sums of the warps.
template <typename Feature, int kLanes>
__global__ void __launch_bounds__(kMaxThreads, 4) forward_kernel(const ForwardArgs args) {
  constexpr int kSize = Vector<Feature>::kSize;
  constexpr int kRowsPerWarp = 32 / kLanes;
  extern __shared__ uint4 shared[];
  __shared__ int scratch[kMaxThreads / 32];
  VisiblePoint* visible = reinterpret_cast<VisiblePoint*>(shared);
  Entry* entries = reinterpret_cast<Entry*>(visible + blockDim.x);
  const AggregationForward& call = args.call;
  const AggregationShape& shape = call.shape;
  const int levels = static_cast<int>(shape.levels);
  const int groups = static_cast<int>(shape.groups);
  const int weights_per_point = levels * groups;
  float* weights = reinterpret_cast<float*>(entries + args.chunk_points * levels);
  float* partial = reinterpret_cast<float*>(entries);

  const int thread = threadIdx.x;
  const int lane = thread & 31;
  const int warp = thread >> 5;
  const int warps = blockDim.x >> 5;
  const int stride = warps * kRowsPerWarp;
  const uint32_t pairs = static_cast<uint32_t>(shape.points * shape.views);
  const uint32_t slot = blockIdx.y * kLanes + lane % kLanes;
  const uint32_t vector = slot < args.vectors ? slot : args.vectors - 1;
  const float* lane_weights = weights + vector / args.vectors_per_group;

  const int64_t items = shape.batch * shape.anchors;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t sample = item / shape.anchors;
    const uint4* row = static_cast<const uint4*>(call.features) +
                       sample * shape.rows * args.vectors + vector;
    const int64_t first_pair = item * pairs;
    float sum[kSize] = {};

    for (uint32_t scanned = 0; scanned < pairs; scanned += blockDim.x) {
      VisiblePoint mine = {0, -1.0f, -1.0f};
      const uint32_t pair = scanned + thread;
      if (pair < pairs) {
        const uint32_t view = pair / static_cast<uint32_t>(shape.points);
        const uint32_t point = pair - view * static_cast<uint32_t>(shape.points);
        mine.index = point * static_cast<uint32_t>(shape.views) + view;
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
        const int total = points * levels;
        __syncthreads();  // `visible` is written, the previous chunk is read
        for (int i = thread; i < points * weights_per_point; i += blockDim.x) {
          const int k = i / weights_per_point;
          const int r = i - k * weights_per_point;
          const int64_t at = (first_pair + visible[begin + k].index) * weights_per_point + r;
          weights[i] = load_float(call.weights, at, call.weight_type) * call.feature_scale;
        }
        for (int i = thread; i < total; i += blockDim.x) {
          const int level = i / points;
          const int k = i - level * points;
          entries[i] = make_entry(args, visible[begin + k], level,
                                  static_cast<uint32_t>((k * levels + level) * groups));
        }
        __syncthreads();
        int i = warp * kRowsPerWarp + lane / kLanes;
        for (; i + stride < total; i += 2 * stride) {
          Corners<Feature> one, two;
          one.load(entries[i], row, lane_weights);
          two.load(entries[i + stride], row, lane_weights);
          one.add_to(sum);
          two.add_to(sum);
        }
        if (i < total) {
          Corners<Feature> one;
          one.load(entries[i], row, lane_weights);
          one.add_to(sum);
        }
      }
      __syncthreads();  // `visible` and the staged chunk may be overwritten
    }

    // Rows of a warp, then warps, in order.
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
    }
    if (lane < kLanes) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) partial[(warp * kSize + i) * kLanes + lane] = sum[i];
    }
    __syncthreads();
    for (int i = thread; i < kLanes * kSize; i += blockDim.x) {
      const int at = (i % kSize) * kLanes + i / kSize;
      float result = 0.0f;
      for (int w = 0; w < warps; ++w) result += partial[w * kLanes * kSize + at];
      const int64_t channel = static_cast<int64_t>(blockIdx.y) * kLanes * kSize + i;
      if (channel < shape.channels) {
        store_float(call.output, item * shape.channels + channel, call.output_type, result);
      }
    }
    __syncthreads();
  }
}

template <typename Feature, int kLanes>
std::string launch(ForwardArgs& args, int threads, int chunk_points, bool* taken) {
  const AggregationShape& shape = args.call.shape;
  const int64_t point_bytes =
      shape.levels * static_cast<int64_t>(sizeof(Entry)) + shape.levels * shape.groups * 4;
  int64_t chunk = chunk_points > 0 ? chunk_points : kStagedBytes / point_bytes;
  chunk = chunk < 1 ? 1 : (chunk > 64 ? 64 : chunk);
  int64_t staged = chunk * point_bytes;
  const int64_t sums = int64_t{4} * (threads / 32) * kLanes * Vector<Feature>::kSize;
  if (staged < sums) staged = sums;
  // The compaction list is 12 bytes per thread: a multiple of 16 for whole warps.
  const int64_t bytes = threads * static_cast<int64_t>(sizeof(VisiblePoint)) + staged;
  if (bytes > 48 * 1024) return {};
  *taken = true;
  args.chunk_points = static_cast<int>(chunk);
  const int64_t items = shape.batch * shape.anchors;
  const dim3 grid(static_cast<uint32_t>(items < 0x7fffffff ? items : 0x7fffffff),
                  (args.vectors + kLanes - 1) / kLanes);
  forward_kernel<Feature, kLanes>
      <<<grid, threads, bytes, static_cast<cudaStream_t>(args.call.stream)>>>(args);
  return status(cudaGetLastError(), "deformable aggregation forward");
}

template <typename Feature>
std::string launch_lanes(ForwardArgs& args, int threads, int chunk_points, bool* taken) {
  if (args.vectors <= 8) return launch<Feature, 8>(args, threads, chunk_points, taken);
  if (args.vectors <= 16) return launch<Feature, 16>(args, threads, chunk_points, taken);
  return launch<Feature, 32>(args, threads, chunk_points, taken);
}

}  // namespace

std::string launch_vector_forward(const AggregationForward& call, int threads, int chunk_points,
                                  bool* taken) {
  *taken = false;
  if (!fits_vectors(call.shape, call.feature_type, call.features)) return {};
  ForwardArgs args = {};
  args.call = call;
  const int64_t size = static_cast<int64_t>(size_of(call.feature_type));
  args.vectors = static_cast<uint32_t>(call.shape.channels * size / 16);
  args.vectors_per_group = args.vectors / static_cast<uint32_t>(call.shape.groups);
  threads = threads > 0 ? threads : kMaxThreads;
  switch (call.feature_type) {
    case DType::f32: return launch_lanes<float>(args, threads, chunk_points, taken);
    case DType::f16: return launch_lanes<__half>(args, threads, chunk_points, taken);
    case DType::bf16: return launch_lanes<__nv_bfloat16>(args, threads, chunk_points, taken);
    case DType::i8: return launch_lanes<int8_t>(args, threads, chunk_points, taken);
    default: return {};
  }
}

}  // namespace s4d::cuda
