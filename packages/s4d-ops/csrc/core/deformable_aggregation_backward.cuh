// The parts of the backward kernel: its tables in shared memory and how a block fills them. Kernel
// and formulas are in deformable_aggregation_backward.cu, the only file that includes this one.
#pragma once

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

}  // namespace
}  // namespace s4d::cuda
