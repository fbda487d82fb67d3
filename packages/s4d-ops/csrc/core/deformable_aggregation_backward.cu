// Backward of deformable aggregation with 16-byte loads.
//
// All three gradients follow from two small tables per (feature row, group), so each feature row
// that an anchor touches is read once and added to once, however many of its points share it:
//
//   S[row, g] = sum over samples of the row of share * weight        grad_features[row] += S * go
//   D[row, g] = sum over channels of g of go * features[row]
//   grad_weights[p, l, g] = sum over the four neighbours of share * D[neighbour, g]
//   grad_location[p]      = sum over l, neighbours of d share / d location * sum_g weight * D
//
// One block takes one anchor and walks its visible points in chunks of up to 16. A chunk's
// neighbours ("keys", at most 64 a level) are matched with each other; the first key of each row
// represents it. Everything but the sums in grad_features happens in a fixed order.
#include "deformable_aggregation.cuh"
#include "deformable_aggregation_sums.cuh"

namespace s4d::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 16;               // points; 4 * kChunk keys a level fit a 64-bit mask
constexpr uint32_t kOutside = 0xffffffffu;

struct BackwardArgs {
  AggregationBackward call;
  void* sums;            // fp32 or int64 accumulators of grad_features, zero at the start; or null
  const float* maxima;   // {max |weights|, max |grad_output|} for fixed point, else null
  uint32_t vectors;
  uint32_t vectors_per_group;
  int levels, groups;
  int doubling_steps;    // of the sum over the lanes of a group
  int64_t wide_zeros;    // 16-byte words of an anchor's grad_weights; 0: not aligned
  Divisor by_points, by_levels, by_groups, by_weights;
};

struct VisiblePoint {
  uint32_t index;  // point * views + view
  uint32_t view;
  float x, y;
};

struct Cell {  // one (level, point)
  float fx, fy;
  float width, height;
};

// Layout of the dynamic shared memory; the host asks it for the size.
struct Shared {
  StagedLevel* levels;    // N * L
  VisiblePoint* visible;  // kThreads
  Cell* cells;            // kChunk * L
  uint64_t* row_mask;     // per row: which keys of its level are in it
  uint32_t* key_row;      // kChunk * 4 * L: offset of the neighbour in vectors, or kOutside
  float* key_share;
  int* key_slot;          // row slot of the key's first equal
  uint32_t* row_offset;   // per row
  int* row_level;         // per row
  float2* key_slope;      // contribution to the gradient of (x, y)
  float* weights;         // kChunk * L * G
  float* dots;            // rows * G: table D
  float* shares;          // rows * G: table S

  __host__ __device__ static int64_t bytes(int64_t views, int64_t levels, int64_t groups) {
    const int64_t keys = kChunk * 4 * levels;
    return views * levels * static_cast<int64_t>(sizeof(StagedLevel)) +
           kThreads * static_cast<int64_t>(sizeof(VisiblePoint)) +
           kChunk * levels * static_cast<int64_t>(sizeof(Cell)) + keys * (8 + 5 * 4 + 8) +
           kChunk * levels * groups * 4 + 2 * keys * groups * 4;
  }

  __device__ Shared(void* memory, int views, int level_count, int groups) {
    const int keys = kChunk * 4 * level_count;
    levels = static_cast<StagedLevel*>(memory);
    visible = reinterpret_cast<VisiblePoint*>(levels + views * level_count);
    cells = reinterpret_cast<Cell*>(visible + kThreads);
    row_mask = reinterpret_cast<uint64_t*>(cells + kChunk * level_count);
    key_slope = reinterpret_cast<float2*>(row_mask + keys);
    key_row = reinterpret_cast<uint32_t*>(key_slope + keys);
    key_share = reinterpret_cast<float*>(key_row + keys);
    key_slot = reinterpret_cast<int*>(key_share + keys);
    row_offset = reinterpret_cast<uint32_t*>(key_slot + keys);
    row_level = reinterpret_cast<int*>(row_offset + keys);
    weights = reinterpret_cast<float*>(row_level + keys);
    dots = weights + kChunk * level_count * groups;
    shares = dots + keys * groups;
  }
};

// How many of the next visible points to take: up to kChunk, cut at the last change of view, since
// points of different views share no row.
__device__ inline int chunk_length(const VisiblePoint* visible, int begin, int count) {
  const int most = min(kChunk, count - begin);
  if (begin + most == count) return most;
  int end = begin + most;
  while (end > begin + 1 && visible[end - 1].view == visible[end].view) --end;
  const bool cut = visible[end - 1].view != visible[end].view;
  return cut ? end - begin : most;
}

// Cells and keys of the chunk. Keys of a level lie together: (level * points + k) * 4 + corner.
__device__ inline void stage_cell(const BackwardArgs& args, const Shared& shared,
                                  const VisiblePoint& point, int level, int cell) {
  const StagedLevel map = shared.levels[point.view * args.levels + level];
  uint32_t rows[4] = {kOutside, kOutside, kOutside, kOutside};
  float4 share = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  Cell at_cell = {0.0f, 0.0f, 0.0f, 0.0f};
  if (map.height != 0) {
    const Bilinear<float, int32_t> at = locate(point.x, point.y, map.height, map.width);
    at_cell = {at.fx, at.fy, static_cast<float>(map.width), static_cast<float>(map.height)};
    share = make_float4((1.0f - at.fy) * (1.0f - at.fx), (1.0f - at.fy) * at.fx,
                        at.fy * (1.0f - at.fx), at.fy * at.fx);
    const int64_t row = int64_t{map.first} + int64_t{at.y0} * map.width + at.x0;
    const bool inside[4] = {at.up && at.left, at.up && at.right, at.down && at.left,
                            at.down && at.right};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t neighbour = row + (k & 1) + int64_t{k >> 1} * map.width;
      if (inside[k]) rows[k] = static_cast<uint32_t>(neighbour) * args.vectors;
    }
  }
  shared.cells[cell] = at_cell;
  reinterpret_cast<uint4*>(shared.key_row)[cell] = make_uint4(rows[0], rows[1], rows[2], rows[3]);
  reinterpret_cast<float4*>(shared.key_share)[cell] = share;
}

// Bits of the level's keys that name the same row as `key`.
__device__ inline uint64_t equal_keys(const uint32_t* level_keys, int points, uint32_t key) {
  const uint4* quads = reinterpret_cast<const uint4*>(level_keys);
  uint64_t mask = 0;
  for (int k = 0; k < points; ++k) {
    const uint4 quad = quads[k];
    const uint32_t bits = (quad.x == key ? 1u : 0u) | (quad.y == key ? 2u : 0u) |
                          (quad.z == key ? 4u : 0u) | (quad.w == key ? 8u : 0u);
    mask |= static_cast<uint64_t>(bits) << (4 * k);
  }
  return mask;
}

// Which channels a lane holds, and its part in the sums over groups. A group's lanes are
// neighbours; a group can continue on lane 0 of the next vector.
template <int kVectors>
struct Lane {
  uint32_t vector[kVectors];
  uint32_t group[kVectors];
  uint32_t lanes_left[kVectors];  // of the group, from this lane on, in this vector; 0: no channel
  bool writes[kVectors];          // ends up with the sum over the group's lanes
  bool continues[kVectors];       // ... which adds to what an earlier vector wrote

  __device__ explicit Lane(const BackwardArgs& args) {
    const uint32_t lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      vector[j] = j * 32 + lane;
      const bool active = vector[j] < args.vectors;
      group[j] = active ? vector[j] / args.vectors_per_group : 0;
      const uint32_t inside = vector[j] - group[j] * args.vectors_per_group;
      lanes_left[j] = active ? min(args.vectors_per_group - inside, 32u - lane) : 0u;
      writes[j] = active && (inside == 0 || lane == 0);
      continues[j] = inside != 0;
    }
  }
};

// One feature row: its dot products with grad_output by group, and its share of grad_features.
template <typename Feature, int kVectors>
__device__ inline void add_row(const BackwardArgs& args, const Shared& shared,
                               const Lane<kVectors>& lane, int row, const uint4 (&raw)[kVectors],
                               const float (&grad)[kVectors][Vector<Feature>::kSize],
                               int64_t sample_vectors, float fixed_scale) {
  constexpr int kSize = Vector<Feature>::kSize;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    float value[kSize];
    Vector<Feature>::unpack(raw[j], value);
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < kSize; ++i) dot = fmaf(value[i], grad[j][i], dot);
    for (int step = 0; step < args.doubling_steps; ++step) {
      const float other = __shfl_down_sync(0xffffffffu, dot, 1u << step);
      if ((1u << step) < lane.lanes_left[j]) dot += other;
    }
    const int place = row * args.groups + lane.group[j];
    if (lane.writes[j]) {
      shared.dots[place] = lane.continues[j] ? shared.dots[place] + dot : dot;
    }
    if (kVectors > 1) __syncwarp();
    if (args.sums != nullptr && lane.lanes_left[j] != 0) {
      const float share = shared.shares[place];
      const int64_t at = (sample_vectors + (shared.row_offset[row] + lane.vector[j])) * kSize;
      float term[kSize];
#pragma unroll
      for (int i = 0; i < kSize; ++i) term[i] = share * grad[j][i];
      if (fixed_scale != 0.0f) {
        add_fixed<kSize>(static_cast<unsigned long long*>(args.sums) + at, term, fixed_scale);
      } else {
        add_float<kSize>(static_cast<float*>(args.sums) + at, term);
      }
    }
  }
}

// Zero gradients of all points of an anchor; those of visible points are written over later.
__device__ inline void zero_small_gradients(const BackwardArgs& args, int64_t item,
                                            uint32_t pairs) {
  const AggregationBackward& call = args.call;
  const int64_t first_pair = item * pairs;
  const int64_t per_point = args.by_weights.value;
  const int64_t size = pairs * per_point;
  if (call.grad_weights != nullptr && args.wide_zeros != 0) {
    uint4* to = static_cast<uint4*>(call.grad_weights) + item * args.wide_zeros;
    for (int64_t i = threadIdx.x; i < args.wide_zeros; i += kThreads) {
      to[i] = make_uint4(0, 0, 0, 0);
    }
  } else if (call.grad_weights != nullptr) {
    for (int64_t i = threadIdx.x; i < size; i += kThreads) {
      store_float(call.grad_weights, first_pair * per_point + i, call.weight_type, 0.0f);
    }
  }
  if (call.grad_locations != nullptr) {
    for (int64_t i = threadIdx.x; i < int64_t{2} * pairs; i += kThreads) {
      store_float(call.grad_locations, 2 * first_pair + i, call.location_type, 0.0f);
    }
  }
}

template <typename Feature, int kVectors>
__global__ void __launch_bounds__(kThreads, kVectors > 2 ? 2 : 3)
    backward_kernel(const __grid_constant__ BackwardArgs args) {
  constexpr int kSize = Vector<Feature>::kSize;
  extern __shared__ uint4 memory[];
  __shared__ int scratch[kThreads / 32];
  const AggregationBackward& call = args.call;
  const AggregationShape& shape = call.shape;
  const int levels = args.levels;
  const int groups = args.groups;
  const int weights_per_point = args.by_weights.value;
  const Shared shared(memory, static_cast<int>(shape.views), levels, groups);
  const Lane<kVectors> lane(args);
  const int thread = threadIdx.x;
  const int warp = thread >> 5;
  constexpr int kWarps = kThreads / 32;
  const uint32_t pairs = static_cast<uint32_t>(shape.points * shape.views);
  const float fixed_scale =
      args.maxima == nullptr ? 0.0f : fixed_point_scale(args.maxima, shape);

  // Visible to all after the first barrier of the scan.
  stage_levels(call.spatial_shapes, call.level_start_index, call.index_type, shape, shared.levels);

  const int64_t items = shape.batch * shape.anchors;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t sample_vectors = item / shape.anchors * shape.rows * args.vectors;
    const uint4* features = static_cast<const uint4*>(call.features) + sample_vectors;
    const int64_t first_pair = item * pairs;

    zero_small_gradients(args, item, pairs);

    float grad[kVectors][kSize];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      uint4 raw = make_uint4(0, 0, 0, 0);
      if (lane.lanes_left[j] != 0) {
        raw = __ldg(static_cast<const uint4*>(call.grad_output) + item * args.vectors +
                    lane.vector[j]);
      }
      Vector<Feature>::unpack(raw, grad[j]);
    }

    for (uint32_t scanned = 0; scanned < pairs; scanned += kThreads) {
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
      if (seen) shared.visible[place] = mine;
      __syncthreads();

      for (int begin = 0; begin < count;) {
        const int points = chunk_length(shared.visible, begin, count);
        const VisiblePoint* visible = shared.visible + begin;
        const int keys_per_level = points * 4;
        const int keys = keys_per_level * levels;

        for (int i = thread; i < points * levels; i += kThreads) {
          const int k = args.by_levels.divide(i);
          const int level = i - k * levels;
          stage_cell(args, shared, visible[k], level, level * points + k);
        }
        for (int i = thread; i < points * weights_per_point; i += kThreads) {
          const int k = args.by_weights.divide(i);
          const int64_t at =
              (first_pair + visible[k].index) * weights_per_point + (i - k * weights_per_point);
          shared.weights[i] = load_float(call.weights, at, call.weight_type);
        }
        __syncthreads();

        // Rows: the first key of each. Slots are handed out in a fixed order.
        int rows = 0;
        for (int base = 0; base < keys; base += kThreads) {
          const int i = base + thread;
          const int k = args.by_levels.divide(i >> 2);
          const int level = (i >> 2) - k * levels;
          const int first = level * keys_per_level;
          const int in_level = 4 * k + (i & 3);
          uint32_t offset = kOutside;
          uint64_t mask = 0;
          if (i < keys) offset = shared.key_row[first + in_level];
          if (offset != kOutside) mask = equal_keys(shared.key_row + first, points, offset);
          const bool leads = __ffsll(static_cast<long long>(mask)) - 1 == in_level;
          int found = 0;
          const int slot = rows + compact(leads, scratch, &found);
          if (leads) {
            shared.row_mask[slot] = mask;
            shared.row_level[slot] = level;
            shared.row_offset[slot] = offset;
            for (uint64_t rest = mask; rest != 0; rest &= rest - 1) {
              shared.key_slot[first + __ffsll(static_cast<long long>(rest)) - 1] = slot;
            }
          }
          rows += found;
        }
        __syncthreads();

        for (int i = thread; i < rows * groups; i += kThreads) {
          const int row = args.by_groups.divide(i);
          const int level = shared.row_level[row];
          const float* key_share = shared.key_share + level * keys_per_level;
          const float* weights = shared.weights + level * groups + (i - row * groups);
          float sum = 0.0f;
          for (uint64_t rest = shared.row_mask[row]; rest != 0; rest &= rest - 1) {
            const int key = __ffsll(static_cast<long long>(rest)) - 1;
            sum = fmaf(key_share[key], weights[(key >> 2) * weights_per_point], sum);
          }
          shared.shares[i] = sum;
        }
        __syncthreads();

        for (int row = warp; row < rows; row += 2 * kWarps) {
          const int next = row + kWarps;
          uint4 raw[2][kVectors];
#pragma unroll
          for (int j = 0; j < kVectors; ++j) {
            const uint32_t vector = min(lane.vector[j], args.vectors - 1);
            raw[0][j] = __ldg(features + shared.row_offset[row] + vector);
            if (next < rows) raw[1][j] = __ldg(features + shared.row_offset[next] + vector);
          }
          add_row<Feature, kVectors>(args, shared, lane, row, raw[0], grad, sample_vectors,
                                     fixed_scale);
          if (next < rows) {
            add_row<Feature, kVectors>(args, shared, lane, next, raw[1], grad, sample_vectors,
                                       fixed_scale);
          }
        }
        __syncthreads();

        if (call.grad_weights != nullptr) {
          for (int i = thread; i < points * weights_per_point; i += kThreads) {
            const int k = args.by_weights.divide(i);
            const int rest = i - k * weights_per_point;
            const int level = args.by_groups.divide(rest);
            const int group = rest - level * groups;
            const int key = level * keys_per_level + 4 * k;
            float sum = 0.0f;
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              if (shared.key_row[key + corner] != kOutside) {
                sum = fmaf(shared.key_share[key + corner],
                           shared.dots[shared.key_slot[key + corner] * groups + group], sum);
              }
            }
            const int64_t at = (first_pair + visible[k].index) * weights_per_point + rest;
            store_float(call.grad_weights, at, call.weight_type, sum);
          }
        }
        if (call.grad_locations != nullptr) {
          for (int i = thread; i < keys; i += kThreads) {
            const int k = args.by_levels.divide(i >> 2);
            const int level = (i >> 2) - k * levels;
            const int cell = level * points + k;
            const int key = 4 * cell + (i & 3);
            float slope = 0.0f;
            if (shared.key_row[key] != kOutside) {
              const float* dots = shared.dots + shared.key_slot[key] * groups;
              const float* weights = shared.weights + (k * levels + level) * groups;
              for (int g = 0; g < groups; ++g) slope = fmaf(weights[g], dots[g], slope);
            }
            const Cell at = shared.cells[cell];
            const float across = (key & 2) != 0 ? at.fy : 1.0f - at.fy;
            const float along = (key & 1) != 0 ? at.fx : 1.0f - at.fx;
            shared.key_slope[key] =
                make_float2(slope * at.width * ((key & 1) != 0 ? across : -across),
                            slope * at.height * ((key & 2) != 0 ? along : -along));
          }
          __syncthreads();
          if (thread < 2 * points) {
            const int k = thread >> 1;
            const int axis = thread & 1;
            float sum = 0.0f;
            for (int level = 0; level < levels; ++level) {
              const float2* slope = shared.key_slope + level * keys_per_level + 4 * k;
#pragma unroll
              for (int corner = 0; corner < 4; ++corner) {
                sum += axis == 0 ? slope[corner].x : slope[corner].y;
              }
            }
            const int64_t at = 2 * (first_pair + visible[k].index) + axis;
            store_float(call.grad_locations, at, call.location_type, sum);
          }
        }
        begin += points;
        __syncthreads();
      }
    }
  }
}

template <typename Feature, int kVectors>
std::string launch(const BackwardArgs& args, int64_t bytes) {
  const auto kernel = backward_kernel<Feature, kVectors>;
  const cudaError_t raised = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (raised != cudaSuccess) return status(raised, "deformable aggregation backward");
  const int64_t items = args.call.shape.batch * args.call.shape.anchors;
  const uint32_t grid = static_cast<uint32_t>(items < 0x7fffffff ? items : 0x7fffffff);
  kernel<<<grid, kThreads, bytes, static_cast<cudaStream_t>(args.call.stream)>>>(args);
  return status(cudaGetLastError(), "deformable aggregation backward");
}

template <typename Feature>
std::string launch_vectors(const BackwardArgs& args, int64_t bytes) {
  if (args.vectors <= 32) return launch<Feature, 1>(args, bytes);
  if (args.vectors <= 64) return launch<Feature, 2>(args, bytes);
  return launch<Feature, 4>(args, bytes);
}

}  // namespace

std::string launch_vector_backward(const AggregationBackward& call, void* sums,
                                   const float* maxima, bool* taken) {
  *taken = false;
  constexpr int64_t kMostShared = 96 * 1024;  // every supported architecture has this much
  const int64_t bytes = Shared::bytes(call.shape.views, call.shape.levels, call.shape.groups);
  const int64_t vectors =
      call.shape.channels * static_cast<int64_t>(size_of(call.feature_type)) / 16;
  if (!fits_vectors(call.shape, call.feature_type, call.features) ||
      !aligned16(call.grad_output) || !aligned16(sums) || vectors > 128 || bytes > kMostShared) {
    return {};
  }
  BackwardArgs args = {};
  args.call = call;
  args.sums = sums;
  args.maxima = maxima;
  args.vectors = static_cast<uint32_t>(vectors);
  args.vectors_per_group = args.vectors / static_cast<uint32_t>(call.shape.groups);
  args.levels = static_cast<int>(call.shape.levels);
  args.groups = static_cast<int>(call.shape.groups);
  while ((1u << args.doubling_steps) < args.vectors_per_group && args.doubling_steps < 5) {
    ++args.doubling_steps;
  }
  const int64_t weights_per_point = call.shape.levels * call.shape.groups;
  const int64_t item_bytes = call.shape.points * call.shape.views * weights_per_point *
                             static_cast<int64_t>(size_of(call.weight_type));
  args.wide_zeros = aligned16(call.grad_weights) && item_bytes % 16 == 0 ? item_bytes / 16 : 0;
  args.by_points = Divisor(call.shape.points);
  args.by_levels = Divisor(call.shape.levels);
  args.by_groups = Divisor(call.shape.groups);
  args.by_weights = Divisor(weights_per_point);
  switch (call.feature_type) {
    case DType::f32: *taken = true; return launch_vectors<float>(args, bytes);
    case DType::f16: *taken = true; return launch_vectors<__half>(args, bytes);
    case DType::bf16: *taken = true; return launch_vectors<__nv_bfloat16>(args, bytes);
    default: return {};
  }
}

}  // namespace s4d::cuda
