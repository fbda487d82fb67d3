// The convolution of wide layers on Hopper's warpgroup instructions. Compiled for sm_90a alone.
//
// A block owns kRows output rows and 64 output channels for each of its warpgroups (four warps).
// Products are channels by rows: weights are the left operand and go from global memory straight into
// registers, packed in operand order; input rows are the right operand and are gathered into a ring
// in shared memory, ahead of their use. So a tile may have any multiple of eight rows, and the
// number is chosen so that the device does all rows at once. With so many rows nearly every offset
// has some input: none is skipped.
#include <algorithm>

#include "convolution_epilogue.cuh"
#include "mma_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kMaxStages = 6;
constexpr int kBuffers = 3;  // offsets whose weights are in registers or on their way
constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kSpan = 128;   // bytes of a row in shared memory; a longer row lies in several such

#define S4D_8(x, i) x(acc[i]), x(acc[i + 1]), x(acc[i + 2]), x(acc[i + 3]), x(acc[i + 4]), \
                    x(acc[i + 5]), x(acc[i + 6]), x(acc[i + 7])
#define S4D_40(x) S4D_8(x, 0), S4D_8(x, 8), S4D_8(x, 16), S4D_8(x, 24), S4D_8(x, 32)
#define S4D_64(x) S4D_40(x), S4D_8(x, 40), S4D_8(x, 48), S4D_8(x, 56)
#define S4D_LIST_40 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20," \
                    "%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39"
#define S4D_LIST_64 S4D_LIST_40 ",%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54," \
                    "%55,%56,%57,%58,%59,%60,%61,%62,%63"

// acc += a * b: a, 64 channels by 32 bytes of depth, in registers as in mma_device.cuh; b, the rows,
// described by `at`. A thread gets, of channels g and g + 8 of its warp's 16 and of every 8 rows,
// rows 2 * quad and the next.
#define S4D_PRODUCT(rows, number, list, all, a0, a1, a2, a3, at_)                                 \
  __device__ inline void group_multiply(float (&acc)[number], const uint32_t (&a)[4],             \
                                        uint64_t at) {                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" rows "k16.f32.f16.f16 {" list "}, {" a0 ","  \
                 a1 "," a2 "," a3 "}, " at_ ", 1, 1, 1, 0;"                                       \
                 : all("+f") : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(at));              \
  }                                                                                               \
  __device__ inline void group_multiply(int (&acc)[number], const uint32_t (&a)[4],               \
                                        uint64_t at) {                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" rows "k32.s32.s8.s8 {" list "}, {" a0 "," a1 \
                 "," a2 "," a3 "}, " at_ ", 1;"                                                   \
                 : all("+r") : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(at));              \
  }
S4D_PRODUCT("80", 40, S4D_LIST_40, S4D_40, "%40", "%41", "%42", "%43", "%44")
S4D_PRODUCT("128", 64, S4D_LIST_64, S4D_64, "%64", "%65", "%66", "%67", "%68")

__device__ inline void group_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void group_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Shared memory of the right operand: rows of kSpan bytes, 8 of them together, whose 16-byte pieces
// are exchanged by row so that neither side meets bank conflicts.
__device__ inline uint64_t describe(uint32_t shared) {
  return static_cast<uint64_t>(shared >> 4 & 0x3fff) | uint64_t{1} << 16 |
         static_cast<uint64_t>(8 * kSpan >> 4) << 32 | uint64_t{1} << 62;
}

// 16 bytes of weights. Where several blocks share a multiprocessor, and so its cache, they are kept
// there: the blocks walk the offsets in step, and most of what they read are weights.
template <bool kShared>
__device__ inline void load_weights(uint32_t (&to)[4], const void* from) {
  if constexpr (kShared) {
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from));
  }
}

// 16 bytes into shared memory in the background, zeros without reading where `there` is false.
__device__ inline void gather_16(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// kParts: 64-byte pieces of a feature row, 2 or 4; kGroups: warpgroups of a block.
template <class Sum, int kParts, int kRows, int kGroups>
__global__ void __launch_bounds__(kGroups * kGroup, 3 - kGroups)
    group_kernel(const __grid_constant__ TileTask t) {
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr int kRowBytes = kParts * 64;
  constexpr int kSteps = kParts * 2;         // products of an offset
  constexpr int kChunks = kParts * 4;        // 16-byte pieces of a row
  constexpr int kStageBytes = kRowBytes * kRows;
  const ConvolutionTask& task = t.task;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = threadIdx.x / kGroup;
  const int g = lane >> 2, quad = lane & 3, volume = task.volume;
  constexpr int threads = kGroups * kGroup, columns = kGroups * 64, row_floats = columns + 4;
  const int column_base = blockIdx.y * columns;
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  float* scale = reinterpret_cast<float*>(shared + t.epilogue_offset);
  float* bias = scale + columns;
  int* source = reinterpret_cast<int*>(shared + t.table_offset);  // volume x kRows

  constexpr int kOffsetBytes = kParts * 64 * columns;
  const auto* weight = static_cast<const unsigned char*>(task.weight) +
                       int64_t{blockIdx.y} * volume * kOffsetBytes + group * 4096 +
                       (warp & 3) * 512 + lane * 16;
  uint32_t left[kBuffers][kSteps][4];
  const auto fetch = [&](int k, uint32_t (&to)[kSteps][4]) {
    const unsigned char* from = weight + static_cast<unsigned>(k * kOffsetBytes);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      load_weights<kGroups == 1>(to[s], from + s / 2 * 64 * columns + s % 2 * 2048);
    }
  };
  const auto fetch_first = [&] {
    fetch(0, left[0]);
    if (volume > 1) fetch(1, left[1]);
  };
  const auto fetch_constants = [&] {
    for (int i = threadIdx.x; i < columns; i += threads) {
      const int column = column_base + i;
      const bool real = column < task.out_channels;
      scale[i] = real ? (task.scale ? task.scale[column] : 1.0f) : 0.0f;
      bias[i] = real && task.bias ? task.bias[column] : 0.0f;
    }
  };
  if (task.settled_weights) {
    fetch_first();
    fetch_constants();
  }
  wait_for_kernels();
  allow_next_kernel();
  if (!task.settled_weights) fetch_constants();

  const int count = static_cast<int>(min(int64_t{*task.out_count}, task.capacity));
  const int tiles = (count + kRows - 1) / kRows;
  // Which rows of a tile this thread gathers, and which 16 bytes of them, stay the same.
  const int chunk = threadIdx.x % kChunks, first_row = threadIdx.x / kChunks;
  constexpr int row_step = threads / kChunks;  // a multiple of 8
  const uint32_t place = ring + static_cast<uint32_t>(
      chunk * 16 / kSpan * (kRows * kSpan) + first_row * kSpan +
      (chunk % 8 ^ (first_row & 7)) * 16);
  const auto* features = static_cast<const unsigned char*>(task.features) + chunk * 16;
  const int stages = t.stages;

  bool fetched = task.settled_weights;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    if (!fetched) fetch_first();
    fetched = false;
    const int base = tile * kRows;
    __syncthreads();  // the tile before is done with shared memory
#pragma unroll 4
    for (int i = threadIdx.x; i < volume * kRows; i += threads) {
      const int k = i / kRows, row = base + i % kRows;
      if (row < count) {
        copy_4(source + i, task.table + k * task.capacity + row);
      } else {
        source[i] = -1;
      }
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();

    int issued = 0, issue_stage = 0;
    const auto issue = [&] {
      if (issued < volume) {
        const int* in = source + issued * kRows + first_row;
        const uint32_t to = place + issue_stage * kStageBytes;
        constexpr int kMine = (kRows + row_step - 1) / row_step;
        int mine[kMine];
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          if (kRows % row_step == 0 || first_row + i * row_step < kRows) mine[i] = in[i * row_step];
        }
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          if (kRows % row_step == 0 || first_row + i * row_step < kRows) {
            gather_16(to + i * row_step * kSpan,
                      features + uint64_t{static_cast<unsigned>(mine[i])} * kRowBytes,
                      mine[i] >= 0);
          }
        }
      }
      commit_copies();
      ++issued;
      if (++issue_stage == stages) issue_stage = 0;
    };
    // Two stages less than there are: one is read, one may still be.
    for (int i = 0; i < stages - 2; ++i) issue();

    Sum acc[kRows / 2];
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) acc[i] = Sum(0);
    int stage = 0;
    for (int first = 0; first < volume; first += kBuffers) {
#pragma unroll
      for (int d = 0; d < kBuffers; ++d) {
        const int k = first + d;
        if (k >= volume) break;
        // Stage k has arrived for all; the products over stage k - 2 are done and its place is free.
        if (stages == kMaxStages) {
          wait_copies<kMaxStages - 3>();
        } else {
          wait_copies<0>();
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        meet();
        issue();
        const uint32_t rows = ring + stage * kStageBytes;
        group_fence();
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const uint32_t at = rows + s * 32 / kSpan * (kRows * kSpan) + s * 32 % kSpan;
          group_multiply(acc, left[d][s], describe(at));
        }
        group_commit();
        group_wait<1>();
        if (k + 2 < volume) fetch(k + 2, left[(d + 2) % kBuffers]);
        if (++stage == stages) stage = 0;
      }
    }
    group_wait<0>();
    wait_copies<0>();

    // Sums go through shared memory: rows of all channels.
    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared);
    const int channel = group * 64 + (warp & 3) * 16 + g;
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int row = i / 4 * 8 + quad * 2 + i % 2;
      sums[row * row_floats + channel + i / 2 % 2 * 8] = static_cast<float>(acc[i]);
    }
    __syncthreads();
    finish_tile<2>(t, base, min(kRows, count - base), column_base, kGroups == 2 ? 4 : 3,
                   row_floats, sums, scale, bias, threadIdx.x, threads);
  }
}

template <class Sum, int kParts, int kRows, int kGroups>
cudaError_t launch(const ConvolutionTask& task, const PackedLayout& layout, const Device& device,
                   bool weigh, int64_t* cost, cudaStream_t stream) {
  TileTask t = describe_task(task, layout);
  constexpr int kStageBytes = kParts * 64 * kRows, kColumns = kGroups * 64;
  constexpr int kSumsBytes = kRows * (kColumns + 4) * 4;
  const int table_bytes = task.volume * kRows * 4, epilogue_bytes = kColumns * 8;
  t.stages = kMaxStages;
  const auto ring = [&] { return std::max(t.stages * kStageBytes, kSumsBytes); };
  while (t.stages > 3 && ring() + table_bytes + epilogue_bytes > device.shared_bytes) --t.stages;
  t.epilogue_offset = ring();
  t.table_offset = t.epilogue_offset + epilogue_bytes;
  const int shared = t.table_offset + table_bytes;
  *cost = INT64_MAX;
  if (shared > device.shared_bytes) return weigh ? cudaSuccess : cudaErrorInvalidValue;
  const auto kernel = group_kernel<Sum, kParts, kRows, kGroups>;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  int blocks = 0;  // of a multiprocessor
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kGroups * kGroup, shared);
  if (error != cudaSuccess) return error;
  if (blocks < 1) return weigh ? cudaSuccess : cudaErrorInvalidValue;
  const int64_t tiles = (task.capacity + kRows - 1) / kRows, all = tiles * layout.blocks;
  const int64_t slots = int64_t{device.multiprocessors} * blocks;
  if (weigh) {
    // Passes, times the tiles that share a multiprocessor in one, times what a tile takes.
    const int64_t beside = (all + device.multiprocessors - 1) / device.multiprocessors;
    *cost = (all + slots - 1) / slots * std::min<int64_t>(blocks, beside) * (kRows + 16);
    return cudaSuccess;
  }
  const int64_t x = std::max<int64_t>(1, std::min(tiles, slots / layout.blocks));
  return launch_overlapped(kernel, dim3(static_cast<unsigned>(x), layout.blocks),
                           dim3(kGroups * kGroup), shared, task.overlap, stream, t);
}

// Takes the number of rows of a tile with which the device is done first.
template <class Sum, int kParts, int kGroups>
cudaError_t by_rows(const ConvolutionTask& task, const PackedLayout& layout, const Device& device,
                    cudaStream_t stream) {
  int64_t few, many;
  cudaError_t error =
      launch<Sum, kParts, 80, kGroups>(task, layout, device, true, &few, stream);
  if (error != cudaSuccess) return error;
  error = launch<Sum, kParts, 128, kGroups>(task, layout, device, true, &many, stream);
  if (error != cudaSuccess) return error;
  return many < few ? launch<Sum, kParts, 128, kGroups>(task, layout, device, false, &many, stream)
                    : launch<Sum, kParts, 80, kGroups>(task, layout, device, false, &few, stream);
}

template <class Sum, int kParts>
cudaError_t by_groups(const ConvolutionTask& task, const PackedLayout& layout,
                      const Device& device, cudaStream_t stream) {
  return layout.columns == 128 ? by_rows<Sum, kParts, 2>(task, layout, device, stream)
                               : by_rows<Sum, kParts, 1>(task, layout, device, stream);
}

}  // namespace

cudaError_t convolve_wgmma(const ConvolutionTask& task, const Device& device,
                           cudaStream_t stream) {
  const PackedLayout layout = packed_layout(task.type, task.in_channels, task.out_channels);
  if (task.type == DType::i8) return by_groups<int, 2>(task, layout, device, stream);
  return layout.parts == 2 ? by_groups<float, 2>(task, layout, device, stream)
                           : by_groups<float, 4>(task, layout, device, stream);
}

}  // namespace s4d::sparse::cuda
