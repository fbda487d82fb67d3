// Rulebooks on the device: table[k * capacity + o] is the input row of output row o at kernel
// offset k, or -1. Same content and offset order as rulebook.h.
#pragma once

#include "site_map_cuda.h"

namespace s4d::sparse::cuda {

struct TableTask {
  const int32_t* out_indices = nullptr;  // (capacity, 4), any order
  const int32_t* out_count = nullptr;
  int64_t capacity = 0;
  SiteMap in;                          // the input's sites
  const int32_t* in_order = nullptr;   // input rows are not in the map's order: PlaceTask::order
  GeometryView geometry;
  int32_t* table = nullptr;            // (volume, capacity), written; -1 beyond the count
};

// All tables in as few launches as possible: any number of tasks, any kernel volume up to 1024.
cudaError_t build_tables(const TableTask* tasks, int number_of_tasks, cudaStream_t stream);

// The same pairs seen from the input, for inverse convolution and gradients: (volume, in_capacity),
// entry = output row or -1, every entry written.
// errors: kEntriesOutside, kEntriesTwice.
cudaError_t transpose_table(const int32_t* table, int32_t volume, const int32_t* out_count,
                            int64_t out_capacity, int64_t in_capacity, int32_t* transposed,
                            int32_t* errors, cudaStream_t stream);

// Counts entries outside [-1, in_rows) in errors[kEntriesOutside]: for tables that come from users.
cudaError_t check_table(const int32_t* table, int32_t volume, const int32_t* out_count,
                        int64_t capacity, const int32_t* in_count, int32_t* errors,
                        cudaStream_t stream);

}  // namespace s4d::sparse::cuda
