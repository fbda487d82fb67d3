// Deformable aggregation, forward, with 16-byte loads.
//
// One block computes one anchor of one sample, for one slice of its channels (all of them in most
// cases). It scans the (view, point) pairs once, keeps the visible ones in order, and stages for a
// few of them at a time what every channel shares: for each (level, point) the vector offset of
// the four neighbours and their bilinear shares, and the weights in fp32. Then each warp takes
// (level, point) entries in turn; its lanes read neighbouring channels, eight 16-byte loads in
// flight each. Entries run level by level and view by view, so the rows that close points share
// are still in L1; where the kernel waits for device memory more than it moves, rows are asked
// into L2 while entries are staged. The warps' sums are added in a fixed order at the end.
#include "deformable_aggregation.cuh"

namespace s4d::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kStagedPoints = 64;
constexpr int kStagedBytes = 16384;  // of entries and weights, if one point needs no more

struct ForwardArgs {
  AggregationForward call;
  uint32_t vectors;      // 16-byte vectors in a feature row
  int chunk_points;      // visible points staged at a time
  int levels, groups;
  bool four_weights;     // weights can be read as float4
  bool prefetch;
  Divisor by_points, by_levels, by_weights, by_group_vectors;
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
                                   uint32_t level, uint32_t weight) {
  const AggregationForward& call = args.call;
  const Level map =
      load_level(call.spatial_shapes, call.level_start_index, call.index_type,
                 point.view * static_cast<uint32_t>(args.levels) + level, call.shape.rows);
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

__device__ inline void prefetch_entry(const Entry& entry, const uint4* rows, uint32_t vectors) {
  const uint32_t bytes = 16 * (entry.step_x + vectors);  // left and right lie side by side
  prefetch_l2(rows + entry.base, bytes);
  if (entry.step_y != 0) prefetch_l2(rows + entry.base + entry.step_y, bytes);
}

// The weights of the staged points, in fp32.
__device__ inline void stage_weights(const ForwardArgs& args, const VisiblePoint* visible,
                                     int points, int64_t first_pair, float* weights) {
  const AggregationForward& call = args.call;
  const uint32_t per_point = args.by_weights.value;
  const float scale = call.feature_scale;
  if (args.four_weights) {
    const float4* from = static_cast<const float4*>(call.weights) + first_pair * (per_point / 4);
    for (uint32_t i = 4 * threadIdx.x; i < points * per_point; i += 4 * blockDim.x) {
      const uint32_t k = args.by_weights.divide(i);
      float4 four = __ldg(from + (static_cast<int64_t>(visible[k].index) * per_point + i -
                                  k * per_point) / 4);
      four.x *= scale;
      four.y *= scale;
      four.z *= scale;
      four.w *= scale;
      *reinterpret_cast<float4*>(weights + i) = four;
    }
    return;
  }
  for (uint32_t i = threadIdx.x; i < points * per_point; i += blockDim.x) {
    const uint32_t k = args.by_weights.divide(i);
    const int64_t at = (first_pair + visible[k].index) * per_point + (i - k * per_point);
    weights[i] = load_float(call.weights, at, call.weight_type) * scale;
  }
}

// One sample of kVectors * kSize channels: eight loads (of 16 bytes) a lane for two vectors.
template <typename Feature, int kVectors>
struct Corners {
  uint4 raw[4][kVectors];
  float4 share;
  float weight[kVectors];

  __device__ void load(const Entry& entry, const uint4* row, const uint32_t (&vector)[kVectors],
                       const float* weights, const uint32_t (&group)[kVectors]) {
    const uint4* at = row + entry.base;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const uint4* up = at + vector[j];
      const uint4* down = up + entry.step_y;
      raw[0][j] = __ldg(up);
      raw[1][j] = __ldg(up + entry.step_x);
      raw[2][j] = __ldg(down);
      raw[3][j] = __ldg(down + entry.step_x);
      weight[j] = weights[entry.weight + group[j]];
    }
    share = entry.share;
  }

  __device__ void add_to(float (&sum)[kVectors][Vector<Feature>::kSize]) const {
    constexpr int kSize = Vector<Feature>::kSize;
    const float shares[4] = {share.x, share.y, share.z, share.w};
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      float sample[kSize], value[kSize];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Vector<Feature>::unpack(raw[k][j], value);
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          sample[i] = k == 0 ? shares[0] * value[i] : fmaf(shares[k], value[i], sample[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum[j][i] = fmaf(weight[j], sample[i], sum[j][i]);
    }
  }
};

// Shared memory: visible points of one scan round, then staged entries and weights; the latter
// area is reused for the sums of the warps.
template <typename Feature, int kLanes, int kVectors>
__global__ void __launch_bounds__(kMaxThreads, 4)
    forward_kernel(const __grid_constant__ ForwardArgs args) {
  constexpr int kSize = Vector<Feature>::kSize;
  constexpr int kRowsPerWarp = 32 / kLanes;
  extern __shared__ uint4 shared[];
  __shared__ int scratch[kMaxThreads / 32];
  VisiblePoint* visible = reinterpret_cast<VisiblePoint*>(shared);
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
  uint32_t vector[kVectors], group[kVectors];
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const uint32_t slot = (blockIdx.y * kVectors + j) * kLanes + lane % kLanes;
    vector[j] = slot < args.vectors ? slot : args.vectors - 1;
    group[j] = args.by_group_vectors.divide(vector[j]);
  }

  const int64_t items = shape.batch * shape.anchors;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t sample = item / shape.anchors;
    const uint4* rows =
        static_cast<const uint4*>(call.features) + sample * shape.rows * args.vectors;
    const int64_t first_pair = item * pairs;
    float sum[kVectors][kSize] = {};

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
          const Entry entry = make_entry(args, visible[begin + k], level, i * args.groups);
          if (args.prefetch && blockIdx.y == 0) prefetch_entry(entry, rows, args.vectors);
          entries[level * points + k] = entry;
        }
        stage_weights(args, visible + begin, points, first_pair, weights);
        __syncthreads();
        int i = warp * kRowsPerWarp + lane / kLanes;
        if constexpr (kVectors == 1) {
          for (; i + stride < total; i += 2 * stride) {
            Corners<Feature, 1> one, two;
            one.load(entries[i], rows, vector, weights, group);
            two.load(entries[i + stride], rows, vector, weights, group);
            one.add_to(sum);
            two.add_to(sum);
          }
        }
        for (; i < total; i += stride) {
          Corners<Feature, kVectors> one;
          one.load(entries[i], rows, vector, weights, group);
          one.add_to(sum);
        }
      }
      __syncthreads();  // `visible` and the staged chunk may be overwritten
    }

    // Rows of a warp, then warps, in order.
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
#pragma unroll
        for (int offset = kLanes; offset < 32; offset *= 2) {
          sum[j][i] += __shfl_xor_sync(0xffffffffu, sum[j][i], offset);
        }
        if (lane < kLanes) partial[((warp * kVectors + j) * kSize + i) * kLanes + lane] = sum[j][i];
      }
    }
    __syncthreads();
    constexpr int kChannels = kVectors * kSize * kLanes;
    for (int i = thread; i < kChannels; i += blockDim.x) {
      const int at = (i / (kLanes * kSize) * kSize + i % kSize) * kLanes + i / kSize % kLanes;
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

template <typename Feature, int kLanes, int kVectors = 1>
std::string launch(ForwardArgs& args, int threads, int chunk_points, bool* taken) {
  const AggregationShape& shape = args.call.shape;
  const int64_t point_bytes =
      shape.levels * static_cast<int64_t>(sizeof(Entry)) + shape.levels * shape.groups * 4;
  int64_t chunk = kStagedBytes / point_bytes;
  if (chunk_points > 0) chunk = chunk_points;
  chunk = chunk < 1 ? 1 : (chunk > kStagedPoints ? kStagedPoints : chunk);
  int64_t staged = chunk * point_bytes;
  const int64_t sums = int64_t{4} * (threads / 32) * kLanes * kVectors * Vector<Feature>::kSize;
  if (staged < sums) staged = sums;
  const int64_t bytes = threads * static_cast<int64_t>(sizeof(VisiblePoint)) + staged;
  if (bytes > 48 * 1024) return {};
  *taken = true;
  args.chunk_points = static_cast<int>(chunk);
  const int64_t items = shape.batch * shape.anchors;
  const dim3 grid(static_cast<uint32_t>(items < 0x7fffffff ? items : 0x7fffffff),
                  (args.vectors + kLanes * kVectors - 1) / (kLanes * kVectors));
  forward_kernel<Feature, kLanes, kVectors>
      <<<grid, threads, bytes, static_cast<cudaStream_t>(args.call.stream)>>>(args);
  return status(cudaGetLastError(), "deformable aggregation forward");
}

template <typename Feature>
std::string launch_lanes(ForwardArgs& args, const AggregationTuning& tuning, int threads,
                         bool* taken) {
  const int chunk = tuning.chunk_points;
  if (args.vectors <= 8) return launch<Feature, 8>(args, threads, chunk, taken);
  if (args.vectors <= 16) return launch<Feature, 16>(args, threads, chunk, taken);
  if constexpr (Vector<Feature>::kSize == 4) {
    if (args.vectors > 32 && tuning.vectors_per_lane != 1) {
      return launch<Feature, 32, 2>(args, threads, chunk, taken);
    }
  }
  return launch<Feature, 32>(args, threads, chunk, taken);
}

}  // namespace

std::string launch_vector_forward(const AggregationForward& call, const AggregationTuning& tuning,
                                  bool* taken) {
  *taken = false;
  const AggregationShape& shape = call.shape;
  if (!fits_vectors(shape, call.feature_type, call.features)) return {};
  ForwardArgs args = {};
  args.call = call;
  const int64_t size = static_cast<int64_t>(size_of(call.feature_type));
  args.vectors = static_cast<uint32_t>(shape.channels * size / 16);
  args.levels = static_cast<int>(shape.levels);
  args.groups = static_cast<int>(shape.groups);
  args.by_points = Divisor(shape.points);
  args.by_levels = Divisor(shape.levels);
  args.by_weights = Divisor(shape.levels * shape.groups);
  args.by_group_vectors = Divisor(args.vectors / static_cast<uint32_t>(shape.groups));
  args.four_weights = call.weight_type == DType::f32 && aligned16(call.weights) &&
                      shape.levels * shape.groups % 4 == 0;
  args.prefetch = tuning.prefetch != 0;
  const int threads = tuning.threads > 0 ? tuning.threads : kMaxThreads;
  switch (call.feature_type) {
    case DType::f32: return launch_lanes<float>(args, tuning, threads, taken);
    case DType::f16: return launch_lanes<__half>(args, tuning, threads, taken);
    case DType::bf16: return launch_lanes<__nv_bfloat16>(args, tuning, threads, taken);
    case DType::i8: return launch_lanes<int8_t>(args, tuning, threads, taken);
    default: return {};
  }
}

}  // namespace s4d::cuda
