#include <type_traits>

#include "convolution_cuda.h"
#include "rows_device.cuh"
#include "site_map_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;

template <class From, class To>
__global__ void place_kernel(PlaceTask task, MapView map, int padded) {
  // A thread moves `kPiece` channels of one row.
  constexpr int kPiece = 16 / sizeof(To) < 8 ? 16 / sizeof(To) : 8;
  const int pieces = padded / kPiece;
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t i = at / pieces;
  if (i >= min(int64_t{*task.count}, task.capacity)) return;
  const int piece = static_cast<int>(at % pieces);
  const int4 r = reinterpret_cast<const int4*>(task.indices)[i];
  if (!inside(map.grid, r)) return;
  const int rank = rank_of(map, key_at(map.grid, r.x, r.y, r.z, r.w));
  if (rank < 0 || rank >= task.capacity) return;
  if (task.order && piece == 0) task.order[rank] = static_cast<int32_t>(i);
  if (!task.out) return;
  const From* from = static_cast<const From*>(task.features) + i * task.channels;
  To* to = static_cast<To*>(task.out) + int64_t{rank} * padded;
  alignas(16) To values[kPiece];
#pragma unroll
  for (int j = 0; j < kPiece; ++j) {
    const int c = piece * kPiece + j;
    store_value(values + j, c < task.channels ? value_of(from[c]) : 0.0f, task.out_range);
  }
  using Vector = std::conditional_t<sizeof(values) == 16, uint4, uint2>;
  reinterpret_cast<Vector*>(to)[piece] = *reinterpret_cast<const Vector*>(values);
}

}  // namespace

cudaError_t place_rows(const PlaceTask& task, cudaStream_t stream) {
  if (task.capacity < 0 || (task.out && (!task.features || task.channels < 1))) {
    return cudaErrorInvalidValue;
  }
  if (task.capacity == 0) return cudaSuccess;
  const int padded = task.out ? padded_channels(task.out_type, task.channels) : 8;
  if (padded == 0) return cudaErrorInvalidValue;
  const MapView map = view_of(task.map);
  return with_types(task.out ? task.type : DType::f16, task.out ? task.out_type : DType::f16,
                    [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    constexpr int piece = 16 / sizeof(To) < 8 ? 16 / sizeof(To) : 8;
    const auto blocks =
        static_cast<unsigned>((task.capacity * (padded / piece) + kThreads - 1) / kThreads);
    place_kernel<From, To><<<blocks, kThreads, 0, stream>>>(task, map, padded);
    return cudaGetLastError();
  });
}

}  // namespace s4d::sparse::cuda
