#include "convolution_launch.h"
#include "rows_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Source {
  const void* weight;
  DType type;
  int volume, in_channels, out_channels;
  bool transposed;
  int depth, width;  // channels read and written

  // Element of (offset, depth, column), zero where there is none.
  __device__ float at(int k, int d, int column) const {
    if (d >= depth || column >= width) return 0.0f;
    const int o = transposed ? d : column, i = transposed ? column : d;
    const int64_t at = (int64_t{o} * volume + k) * in_channels + i;
    switch (type) {
      case DType::f32: return static_cast<const float*>(weight)[at];
      case DType::f16: return __half2float(static_cast<const __half*>(weight)[at]);
      default: return static_cast<float>(static_cast<const int8_t*>(weight)[at]);
    }
  }
};

// One thread per packed element.
template <class T>
__global__ void pack_kernel(Source source, PackedLayout layout, bool grouped,
                            int64_t elements, T* packed) {
  const int64_t element = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (element >= elements) return;
  const int64_t byte = element * static_cast<int64_t>(sizeof(T));
  const int64_t slab = byte / layout.slab_bytes;
  const int rest = static_cast<int>(byte % layout.slab_bytes);
  const int slabs = source.volume * layout.parts * layout.groups;
  const int block = static_cast<int>(slab / slabs);
  const int k = static_cast<int>(slab % slabs) / layout.parts % source.volume;
  const int group = static_cast<int>(slab % slabs) / (layout.parts * source.volume);
  const int part = group * layout.parts + static_cast<int>(slab % layout.parts);
  // A product takes 512 bytes, 16 a lane: with g = lane / 4 and quad = lane % 4 the columns g, g + 8,
  // g, g + 8 of a tile of 16, four bytes of depth each, the later two of the next four bytes. A
  // thread of the kernel reads depth piece / 4 bytes in a row.
  int depth, column;
  if (grouped) {
    // Warpgroups: 64 columns together, then products; of a product 512 bytes for each warp, words as
    // below but in the rows' own order of depth.
    const int step = rest / 2048 % 2, lane = rest % 512 / 16, word = rest % 16 / 4;
    depth = part * 64 + step * 32 + word / 2 * 16 + (lane & 3) * 4 + rest % 4;
    column = rest / 4096 * 64 + rest / 512 % 4 * 16 + (lane >> 2) + word % 2 * 8;
  } else {
    const int steps = layout.piece / 32, lane = rest % 512 / 16, g = lane >> 2, quad = lane & 3;
    const int tile = rest / (512 * steps), step = rest / 512 % steps, word = rest % 16 / 4;
    depth = part * layout.piece + quad * (layout.piece / 4) + step * 8 + word / 2 * 4 + rest % 4;
    column = tile * 16 + g + word % 2 * 8;
  }
  depth /= static_cast<int>(sizeof(T));
  column += block * layout.columns;
  const float value = source.at(k, depth, column);
  if constexpr (sizeof(T) == 1) {
    packed[element] = static_cast<T>(static_cast<int>(value));
  } else {
    packed[element] = __float2half_rn(value);
  }
}

// float32: (volume, depth, columns padded to 16).
__global__ void pack_float_kernel(Source source, int columns, int64_t elements, float* packed) {
  const int64_t element = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (element >= elements) return;
  const int64_t row = element / columns;
  packed[element] = source.at(static_cast<int>(row / source.depth),
                              static_cast<int>(row % source.depth),
                              static_cast<int>(element % columns));
}

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>((items + kThreads - 1) / kThreads);
}

}  // namespace

int32_t padded_channels(DType type, int32_t channels) {
  switch (type) {
    case DType::f16: return round_up(channels, 16);
    case DType::i8: return round_up(channels, 32);
    case DType::f32: return round_up(channels, 4);
    default: return 0;
  }
}

PackedLayout packed_layout(DType type, int32_t in_channels, int32_t out_channels) {
  PackedLayout l{};
  l.row_bytes = padded_channels(type, in_channels) * static_cast<int>(size_of(type));
  l.piece = l.row_bytes % 64 == 0 ? 64 : 32;
  const int pieces = l.row_bytes / l.piece;
  l.parts = pieces % 4 == 0 ? 4 : pieces % 2 == 0 ? 2 : 1;
  l.groups = pieces / l.parts;
  l.all_columns = round_up(out_channels, 16);
  l.columns = l.all_columns;
  if (l.columns > 128) {
    l.columns = 128;
    while (l.all_columns % l.columns != 0) l.columns /= 2;
  }
  l.blocks = l.all_columns / l.columns;
  l.slab_bytes = int64_t{l.columns} * l.piece;
  return l;
}

int64_t packed_weight_bytes(DType type, int32_t volume, int32_t in_channels,
                            int32_t out_channels) {
  if (volume < 1 || in_channels < 1 || out_channels < 1) return 0;
  if (type == DType::f32) {
    return (int64_t{volume} * in_channels * round_up(out_channels, 16) * 4 + 255) / 256 * 256;
  }
  if (type != DType::f16 && type != DType::i8) return 0;
  const PackedLayout l = packed_layout(type, in_channels, out_channels);
  return (l.slab_bytes * l.parts * l.groups * volume * l.blocks + 255) / 256 * 256;
}

cudaError_t pack_weights(DType type, const void* weight, DType source, int32_t volume,
                         int32_t in_channels, int32_t out_channels, bool transposed, void* packed,
                         cudaStream_t stream) {
  const int depth = transposed ? out_channels : in_channels;
  const int width = transposed ? in_channels : out_channels;
  const bool codes = type == DType::i8;
  if (packed_weight_bytes(type, volume, depth, width) == 0 || codes != (source == DType::i8) ||
      (source != DType::f32 && source != DType::f16 && source != DType::i8)) {
    return cudaErrorInvalidValue;
  }
  const Source from{weight, source, volume, in_channels, out_channels, transposed, depth, width};
  if (type == DType::f32) {
    const int columns = round_up(width, 16);
    const int64_t elements = int64_t{volume} * depth * columns;
    pack_float_kernel<<<blocks_for(elements), kThreads, 0, stream>>>(
        from, columns, elements, static_cast<float*>(packed));
    return cudaGetLastError();
  }
  const PackedLayout l = packed_layout(type, depth, width);
  const int64_t bytes = l.slab_bytes * l.parts * l.groups * volume * l.blocks;
  const bool grouped = wgmma_serves(type, volume, depth, width);
  if (codes) {
    pack_kernel<<<blocks_for(bytes), kThreads, 0, stream>>>(from, l, grouped, bytes,
                                                            static_cast<int8_t*>(packed));
  } else {
    pack_kernel<<<blocks_for(bytes / 2), kThreads, 0, stream>>>(from, l, grouped, bytes / 2,
                                                                static_cast<__half*>(packed));
  }
  return cudaGetLastError();
}

}  // namespace s4d::sparse::cuda
