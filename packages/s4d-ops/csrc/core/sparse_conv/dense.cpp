#include "dense.h"

#include <cstring>
#include <string>
#include <vector>

#include "../parallel.h"
#include "coordinates.h"

namespace s4d::sparse {

namespace {

// Element offset of (batch, channel 0, cell) of every row, and the distance between channels.
struct Places {
  std::vector<int64_t> offset;
  int64_t channel_stride;
};

Places places_of(const int32_t* indices, int64_t count, const DenseLayout& layout) {
  sort_rows(indices, count, layout.grid);  // for its checks
  bool seen[3] = {false, false, false};
  for (int64_t axis : layout.order) {
    if (axis < 0 || axis > 2 || seen[axis]) {
      throw InvalidSparseInput("expected an axis order that is a permutation of 0, 1, 2");
    }
    seen[axis] = true;
  }
  Axes stride{};
  int64_t step = 1;
  for (int place = 2; place >= 0; --place) {
    stride[layout.order[place]] = step;
    step *= layout.grid.shape[layout.order[place]];
  }
  Places places{std::vector<int64_t>(static_cast<size_t>(count)), step};
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* row = indices + 4 * i;
    places.offset[i] = row[0] * step * layout.channels + row[1] * stride[0] + row[2] * stride[1] +
                       row[3] * stride[2];
  }
  return places;
}

template <class T>
void scatter(const T* features, const Places& places, int64_t channels, T* dense, int threads) {
  const int64_t count = static_cast<int64_t>(places.offset.size());
  // One thread writes whole channels: its writes stay inside few planes.
  parallel_for(channels, 8, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < count; ++i) {
      T* cell = dense + places.offset[i];
      for (int64_t c = begin; c < end; ++c) {
        cell[c * places.channel_stride] = features[i * channels + c];
      }
    }
  });
}

template <class T>
void gather(const T* dense, const Places& places, int64_t channels, T* features, int threads) {
  const int64_t count = static_cast<int64_t>(places.offset.size());
  parallel_for(count, 256, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* cell = dense + places.offset[i];
      for (int64_t c = 0; c < channels; ++c) {
        features[i * channels + c] = cell[c * places.channel_stride];
      }
    }
  });
}

[[noreturn]] void refuse_element(int64_t element) {
  throw InvalidSparseInput("expected elements of 1, 2, 4 or 8 bytes, got " +
                           std::to_string(element));
}

}  // namespace

void scatter_dense(const void* features, const int32_t* indices, int64_t count,
                   const DenseLayout& layout, int64_t element, void* dense, int threads) {
  const Places places = places_of(indices, count, layout);
  const int64_t bytes = layout.grid.cells() * layout.channels * element;
  parallel_for(bytes, int64_t{1} << 20, threads, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(dense) + begin, 0, static_cast<size_t>(end - begin));
  });
  auto run = [&](auto type) {
    using T = decltype(type);
    scatter(static_cast<const T*>(features), places, layout.channels, static_cast<T*>(dense),
            threads);
  };
  switch (element) {
    case 1: return run(uint8_t{});
    case 2: return run(uint16_t{});
    case 4: return run(uint32_t{});
    case 8: return run(uint64_t{});
    default: refuse_element(element);
  }
}

void gather_dense(const void* dense, const int32_t* indices, int64_t count,
                  const DenseLayout& layout, int64_t element, void* features, int threads) {
  const Places places = places_of(indices, count, layout);
  auto run = [&](auto type) {
    using T = decltype(type);
    gather(static_cast<const T*>(dense), places, layout.channels, static_cast<T*>(features),
           threads);
  };
  switch (element) {
    case 1: return run(uint8_t{});
    case 2: return run(uint16_t{});
    case 4: return run(uint32_t{});
    case 8: return run(uint64_t{});
    default: refuse_element(element);
  }
}

}  // namespace s4d::sparse
