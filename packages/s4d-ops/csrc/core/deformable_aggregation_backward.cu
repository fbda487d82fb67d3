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
#include "deformable_aggregation_backward.cuh"

namespace s4d::cuda {
namespace {

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
