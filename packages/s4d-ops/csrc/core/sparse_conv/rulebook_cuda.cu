#include "rulebook_cuda.h"

#include "site_map_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTasks = 12;  // tables of one launch; the list must fit kernel parameters
constexpr int kMaxVolume = 1024;
constexpr int kWindow = 1024;        // rows among which columns are grouped
constexpr int kGroupedVolume = 27;   // of tables whose columns are grouped, at most

struct Job {
  const int4* rows;
  const int32_t* count;
  int32_t capacity;
  uint32_t first_block;  // of this job in the launch
  int32_t row_blocks;    // blocks that share one (offset 0, offset 1) pair
  const int32_t* in_order;
  int32_t* table;
  int32_t* columns;
  GeometryView geometry;
  MapView in;
};

struct Jobs {
  Job job[kTasks];
  int number;
  bool plain_columns;  // columns[i] = i; else another kernel groups them
};

// A thread finds the neighbours of one row at all offsets of the last axis, which mostly lie in
// one unit of the map. Neighbouring threads take neighbouring rows, so writes are coalesced.
__global__ void __launch_bounds__(kThreads) table_kernel(const __grid_constant__ Jobs jobs) {
  int which = 0;
  while (which + 1 < jobs.number && blockIdx.x >= jobs.job[which + 1].first_block) ++which;
  const Job& job = jobs.job[which];
  const uint32_t block = blockIdx.x - job.first_block;
  const int32_t row = static_cast<int32_t>(block % job.row_blocks) * kThreads + threadIdx.x;
  if (row >= job.capacity) return;
  const GeometryView& geo = job.geometry;
  const GridView& g = job.in.grid;
  const int pair = static_cast<int>(block / job.row_blocks);
  const int length = geo.kernel[2];
  int32_t* table = job.table + int64_t{pair} * length * job.capacity + row;

  if (job.columns && jobs.plain_columns && pair == 0) job.columns[row] = row;
  bool active = row < *job.count;
  int64_t line = 0;
  int c = 0;
  if (active) {
    const int4 r = job.rows[row];
    const int a = r.y * geo.stride[0] - geo.padding[0] + pair / geo.kernel[1] * geo.dilation[0];
    const int b = r.z * geo.stride[1] - geo.padding[1] + pair % geo.kernel[1] * geo.dilation[1];
    c = r.w * geo.stride[2] - geo.padding[2];
    active = a >= 0 && a < g.a && b >= 0 && b < g.b;
    line = key_at(g, r.x, a, b, 0);
  }
  uint32_t held = ~0u;
  uint4 unit = make_uint4(0, 0, 0, 0);
  for (int k = 0; k < length; ++k, c += geo.dilation[2]) {
    int found = -1;
    if (active && c >= 0 && c < g.c) {
      const Cell cell = cell_at(line + c);
      if (cell.unit != held) {
        held = cell.unit;
        unit = __ldg(job.in.units + held);
      }
      found = rank_in(unit, cell.word, cell.bit);
      if (found >= 0 && job.in_order) found = job.in_order[found];
    }
    table[int64_t{k} * job.capacity] = found;
  }
}

// Sorts the columns of windows of 1024 rows by which offsets they have, in place. A convolution
// works on 16 or 32 columns at a time and skips offsets that none of them has.
__global__ void __launch_bounds__(kWindow) group_kernel(const __grid_constant__ Jobs jobs) {
  __shared__ unsigned long long keys[kWindow];
  int which = 0;
  while (which + 1 < jobs.number && blockIdx.x >= jobs.job[which + 1].first_block) ++which;
  const Job& job = jobs.job[which];
  const int thread = threadIdx.x;
  const int64_t first = int64_t{blockIdx.x - job.first_block} * kWindow;
  const int64_t column = first + thread;
  const int count = *job.count;
  if (first >= count) {
    if (column < job.capacity) job.columns[column] = static_cast<int32_t>(column);
    return;
  }
  const GeometryView& geo = job.geometry;
  const int volume = geo.kernel[0] * geo.kernel[1] * geo.kernel[2];
  int32_t* table = job.table + first;
  uint32_t mask = 0;
  if (column < count) {
#pragma unroll 9
    for (int k = 0; k < volume; ++k) {
      mask |= (table[int64_t{k} * job.capacity + thread] >= 0 ? 1u : 0u) << k;
    }
    if (geo.stride[0] == 1 && geo.kernel[0] == 3) {
      // The middle plane differs most between neighbours: it goes last.
      const int plane = volume / 3;
      const uint32_t low = mask & ((1u << plane) - 1u);
      const uint32_t middle = mask >> plane & ((1u << plane) - 1u);
      mask = mask >> (2 * plane) << (2 * plane) | low << plane | middle;
    }
  }
  unsigned long long key = static_cast<unsigned long long>(mask) << 10 | thread;
  if (column >= count) key = ~0ull << 10 | thread;  // these stay behind all others, in order
  // Bitonic: exchanges inside a warp go by registers.
  for (int size = 2; size <= kWindow; size *= 2) {
    const bool up = (thread & size) == 0;
    for (int step = size / 2; step > 0; step /= 2) {
      unsigned long long other;
      if (step >= 32) {
        __syncthreads();
        keys[thread] = key;
        __syncthreads();
        other = keys[thread ^ step];
      } else {
        other = __shfl_xor_sync(~0u, key, step);
      }
      const bool lower = (thread & step) == 0;
      key = (key < other) == (lower == up) ? key : other;
    }
  }
  const int from = static_cast<int>(key & (kWindow - 1));
  int32_t entries[kGroupedVolume];
  if (first + from < job.capacity) {
#pragma unroll
    for (int k = 0; k < kGroupedVolume; ++k) {
      if (k < volume) entries[k] = table[int64_t{k} * job.capacity + from];
    }
  }
  __syncthreads();
  if (column >= job.capacity) return;
#pragma unroll
  for (int k = 0; k < kGroupedVolume; ++k) {
    if (k < volume) table[int64_t{k} * job.capacity + thread] = entries[k];
  }
  job.columns[column] = static_cast<int32_t>(first + from);
}

__global__ void fill_kernel(int32_t* to, int64_t number) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < number) to[i] = -1;
}

__global__ void transpose_kernel(const int32_t* table, const int32_t* out_count,
                                 int64_t out_capacity, int64_t in_capacity, int32_t* transposed,
                                 int32_t* errors) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= min(int64_t{*out_count}, out_capacity)) return;
  const int32_t in = table[blockIdx.y * out_capacity + row];
  if (in == -1) return;
  if (in < 0 || in >= in_capacity) {
    if (errors) atomicAdd(errors + kEntriesOutside, 1);
    return;
  }
  // With two outputs at one input the larger row stays: an error, but the same one in every run.
  const int32_t before = atomicMax(transposed + blockIdx.y * in_capacity + in,
                                   static_cast<int32_t>(row));
  if (before != -1 && errors) atomicAdd(errors + kEntriesTwice, 1);
}

__global__ void check_kernel(const int32_t* table, const int32_t* out_count, int64_t capacity,
                             const int32_t* in_count, int32_t* errors) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= min(int64_t{*out_count}, capacity)) return;
  const int32_t in = table[blockIdx.y * capacity + row];
  if (in < -1 || in >= *in_count) atomicAdd(errors + kEntriesOutside, 1);
}

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>((items + kThreads - 1) / kThreads);
}

bool good(const TableTask& task) {
  int64_t volume = 1;
  for (int i = 0; i < 3; ++i) {
    const GeometryView& g = task.geometry;
    if (g.kernel[i] < 1 || g.stride[i] < 1 || g.dilation[i] < 1) return false;
    volume *= g.kernel[i];
    if (volume > kMaxVolume) return false;
  }
  return task.capacity >= 0 && task.capacity <= INT32_MAX / 4 && site_map_bytes(task.in.grid) > 0 &&
         (task.capacity == 0 || (task.out_indices && task.out_count && task.table));
}

}  // namespace

namespace {

Job job_of(const TableTask& task, uint32_t first_block) {
  return {reinterpret_cast<const int4*>(task.out_indices), task.out_count,
          static_cast<int32_t>(task.capacity), first_block,
          static_cast<int32_t>(blocks_for(task.capacity)), task.in_order, task.table, task.columns,
          task.geometry, view_of(task.in)};
}

// Launches `kernel` over the chosen tasks, kTasks at a time; a task takes blocks(task) of them.
template <class Kernel, class Chosen, class Blocks>
void launch(const TableTask* tasks, int number_of_tasks, Kernel kernel, int threads,
            bool plain_columns, Chosen chosen, Blocks blocks, cudaStream_t stream) {
  Jobs jobs;
  jobs.plain_columns = plain_columns;
  jobs.number = 0;
  int64_t total = 0;
  const auto flush = [&] {
    if (total > 0) kernel<<<static_cast<unsigned>(total), threads, 0, stream>>>(jobs);
    jobs.number = 0;
    total = 0;
  };
  for (int i = 0; i < number_of_tasks; ++i) {
    if (tasks[i].capacity == 0 || !chosen(tasks[i])) continue;
    const int64_t more = blocks(tasks[i]);
    if (jobs.number == kTasks || total + more > INT32_MAX) flush();
    jobs.job[jobs.number++] = job_of(tasks[i], static_cast<uint32_t>(total));
    total += more;
  }
  flush();
}

}  // namespace

cudaError_t build_tables(const TableTask* tasks, int number_of_tasks, cudaStream_t stream) {
  for (int i = 0; i < number_of_tasks; ++i) {
    if (!good(tasks[i])) return cudaErrorInvalidValue;
  }
  const auto volume = [](const TableTask& t) {
    return t.geometry.kernel[0] * t.geometry.kernel[1] * t.geometry.kernel[2];
  };
  const auto grouped = [&](const TableTask& t) {
    return t.columns && volume(t) <= kGroupedVolume && volume(t) > 1;
  };
  const auto entries = [](const TableTask& t) {
    return int64_t{blocks_for(t.capacity)} * t.geometry.kernel[0] * t.geometry.kernel[1];
  };
  const auto windows = [](const TableTask& t) { return (t.capacity + kWindow - 1) / kWindow; };
  launch(tasks, number_of_tasks, table_kernel, kThreads, false,
         [&](const TableTask& t) { return !t.columns || grouped(t); }, entries, stream);
  launch(tasks, number_of_tasks, table_kernel, kThreads, true,
         [&](const TableTask& t) { return t.columns && !grouped(t); }, entries, stream);
  launch(tasks, number_of_tasks, group_kernel, kWindow, false, grouped, windows, stream);
  return cudaGetLastError();
}

cudaError_t transpose_table(const int32_t* table, int32_t volume, const int32_t* out_count,
                            int64_t out_capacity, int64_t in_capacity, int32_t* transposed,
                            int32_t* errors, cudaStream_t stream) {
  if (volume < 1 || volume > kMaxVolume || out_capacity < 0 || in_capacity < 0) {
    return cudaErrorInvalidValue;
  }
  if (in_capacity > 0) {
    fill_kernel<<<blocks_for(volume * in_capacity), kThreads, 0, stream>>>(transposed,
                                                                          volume * in_capacity);
  }
  if (out_capacity > 0) {
    transpose_kernel<<<dim3(blocks_for(out_capacity), volume), kThreads, 0, stream>>>(
        table, out_count, out_capacity, in_capacity, transposed, errors);
  }
  return cudaGetLastError();
}

cudaError_t check_table(const int32_t* table, int32_t volume, const int32_t* out_count,
                        int64_t capacity, const int32_t* in_count, int32_t* errors,
                        cudaStream_t stream) {
  if (volume < 1 || volume > kMaxVolume || capacity < 0 || !errors) return cudaErrorInvalidValue;
  if (capacity == 0) return cudaSuccess;
  check_kernel<<<dim3(blocks_for(capacity), volume), kThreads, 0, stream>>>(
      table, out_count, capacity, in_count, errors);
  return cudaGetLastError();
}

}  // namespace s4d::sparse::cuda
