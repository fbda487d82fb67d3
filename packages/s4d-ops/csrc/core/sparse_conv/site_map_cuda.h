// Active cells of a grid on the device, and the sorted sites of a chain of grids.
//
// A map holds 96 cells per 16 bytes: three words of bits and the number of active cells before
// them. The rank of a cell is its row in sorted order, so rows come out sorted by
// (batch, axis 0, axis 1, axis 2) without a hash or a sort, and the same in every run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../types.h"

namespace s4d::sparse::cuda {

// Slots of `errors`.
enum ErrorSlot : int {
  kRowsOutside = 0,    // index rows outside the grid
  kRowsTwice = 1,      // index rows that repeat an earlier one
  kRowsLost = 2,       // sites or voxels beyond a capacity: results are incomplete, grow and repeat
  kEntriesOutside = 3,  // table entries outside [-1, rows)
  kEntriesTwice = 4,   // two outputs read one input at one offset: no rulebook
  kErrorSlots = 8
};

struct GridView {
  int32_t batch = 1, a = 0, b = 0, c = 0;
};

// Cross-correlation: input = output * stride - padding + offset * dilation. Submanifold: stride 1,
// padding = kernel / 2 * dilation.
struct GeometryView {
  int32_t kernel[3]{1, 1, 1}, stride[3]{1, 1, 1}, padding[3]{0, 0, 0}, dilation[3]{1, 1, 1};
};

struct SiteMap {
  GridView grid;
  void* memory = nullptr;    // site_map_bytes(grid)
  int32_t* count = nullptr;  // (1), number of active cells, written
};

// Bytes of a map; a multiple of 256. 0 where the grid is too large: 2^37 cells at most.
int64_t site_map_bytes(const GridView& grid);

struct SiteLevel {
  SiteMap map;
  GeometryView geometry;       // from the level before to this one; not used at a chain's start
  int32_t* indices = nullptr;  // (capacity, 4), written: the sites in order
  int64_t capacity = 0;
};

// Level 0: the sites of `indices` (count, 4), sorted. Level i: the cells of its grid that have an
// active cell of level i - 1 in their window. Fills maps, counts and index rows of all levels.
// `cleared`: the maps' memory is zero already (one memset over all of them is faster).
// errors: kRowsOutside, kRowsTwice (both at level 0, such rows are left out), kRowsLost.
cudaError_t build_sites(const int32_t* indices, const int32_t* count, int64_t capacity,
                        const SiteLevel* levels, int number_of_levels, bool cleared,
                        int32_t* errors, cudaStream_t stream);

// Levels 1 on of such a chain, from the same index rows, without those of level 0 (of whose map only
// the grid is read): it can run on another stream while level 0 is built. Served where no kernel
// has dilation or is smaller than its stride, and for at most 8 levels.
cudaError_t extend_sites(const int32_t* indices, const int32_t* count, int64_t capacity,
                         const SiteLevel* levels, int number_of_levels, bool cleared,
                         int32_t* errors, cudaStream_t stream);

// One strided level alone, from index rows (any order, checked before).
cudaError_t strided_sites(const int32_t* indices, const int32_t* count, int64_t capacity,
                          const SiteLevel& level, bool cleared, int32_t* errors,
                          cudaStream_t stream);

// Brings the features of unsorted rows into the map's order. Rows outside the grid are skipped.
struct PlaceTask {
  const int32_t* indices = nullptr;  // (capacity, 4), the rows that build_sites was given
  const int32_t* count = nullptr;
  int64_t capacity = 0;
  SiteMap map;
  const void* features = nullptr;  // (capacity, channels) f32 or f16, not padded; may be null
  DType type = DType::f16;
  int32_t channels = 0;
  void* out = nullptr;             // (capacity, padded_channels(out_type, channels))
  DType out_type = DType::f16;     // f32, f16 or i8
  float out_range = 0.0f;          // i8: amax
  int32_t* order = nullptr;        // (capacity), may be null: order[rank] = input row
};
cudaError_t place_rows(const PlaceTask& task, cudaStream_t stream);

}  // namespace s4d::sparse::cuda
