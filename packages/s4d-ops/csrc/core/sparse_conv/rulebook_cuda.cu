#include "rulebook_cuda.h"

#include "site_map_device.cuh"

namespace s4d::sparse::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTasks = 12;  // tables of one launch; the list must fit kernel parameters
constexpr int kMaxVolume = 1024;

struct Job {
  const int4* rows;
  const int32_t* count;
  int32_t capacity;
  uint32_t first_block;  // of this job in the launch
  int32_t row_blocks;    // blocks that share one offset of the first axis
  const int32_t* in_order;
  int32_t* table;
  GeometryView geometry;
  MapView in;
};

struct Jobs {
  Job job[kTasks];
  int number;
};

// Input rows at `number` cells of a line from cell c on, step apart.
__device__ void find_any(const Job& job, int64_t line, bool there, int c, int number, int step,
                         int32_t* to) {
  uint32_t held = ~0u;
  uint4 unit = make_uint4(0, 0, 0, 0);
  for (int k = 0; k < number; ++k, c += step) {
    int found = -1;
    if (there && c >= 0 && c < job.in.grid.c) {
      const Cell cell = cell_at(line + c);
      if (cell.unit != held) {
        held = cell.unit;
        unit = __ldg(job.in.units + held);
      }
      found = rank_in(unit, cell.word, cell.bit);
      if (found >= 0 && job.in_order) found = job.in_order[found];
    }
    to[int64_t{k} * job.capacity] = found;
  }
}

// The same for three neighbouring cells, which nearly always lie in one unit: ranks of neighbours
// follow one another, so one is counted and the others are added up.
__device__ void find_three(const Job& job, int64_t line, bool there, int c, int32_t* to) {
  const int before = c < 0 ? -c : 0;  // cells ahead of the line
  const int64_t key = line + c + before;
  const uint32_t word = static_cast<uint32_t>(key >> 5), number = word / 3;
  const int which = static_cast<int>(word - number * 3), bit = static_cast<int>(key & 31);
  if (there && which == 2 && bit > 29) {
    find_any(job, line, true, c, 3, 1, to);
    return;
  }
  uint4 unit = make_uint4(0, 0, 0, 0);
  if (there && before < 3 && c < job.in.grid.c) unit = __ldg(job.in.units + number);
  const uint32_t low = which == 0 ? unit.y : which == 1 ? unit.z : unit.w;
  const uint32_t high = which == 0 ? unit.z : unit.w;
  int rank = static_cast<int>(unit.x) + __popc(low & ((1u << bit) - 1u));
  if (which > 0) rank += __popc(unit.y);
  if (which > 1) rank += __popc(unit.z);
  uint32_t cells = __funnelshift_r(low, high, bit) << min(before, 3) & 7u;
  const int behind = c + 3 - job.in.grid.c;  // cells past the line
  if (behind > 0) cells &= 7u >> min(behind, 3);
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const bool here = cells >> k & 1u;
    int found = here ? rank : -1;
    if (here && job.in_order) found = job.in_order[rank];
    rank += here ? 1 : 0;
    to[int64_t{k} * job.capacity] = found;
  }
}

// A thread finds the neighbours of one row at all offsets that share one offset of the first axis.
// Neighbouring threads take neighbouring rows, so writes are coalesced.
__global__ void __launch_bounds__(kThreads) table_kernel(const __grid_constant__ Jobs jobs) {
  int which = 0;
  while (which + 1 < jobs.number && blockIdx.x >= jobs.job[which + 1].first_block) ++which;
  const Job& job = jobs.job[which];
  const uint32_t block = blockIdx.x - job.first_block;
  const int plane = static_cast<int>(block / job.row_blocks);
  const int32_t row =
      static_cast<int32_t>(block - plane * job.row_blocks) * kThreads + threadIdx.x;
  if (row >= job.capacity) return;
  const GeometryView& geo = job.geometry;
  const GridView& g = job.in.grid;
  const int lines = geo.kernel[1], length = geo.kernel[2];
  int32_t* table = job.table + int64_t{plane} * lines * length * job.capacity + row;

  bool active = row < *job.count;
  int64_t first = 0;
  int b = 0, c = 0;
  if (active) {
    const int4 r = job.rows[row];
    const int a = r.y * geo.stride[0] - geo.padding[0] + plane * geo.dilation[0];
    b = r.z * geo.stride[1] - geo.padding[1];
    c = r.w * geo.stride[2] - geo.padding[2];
    active = a >= 0 && a < g.a;
    first = key_at(g, r.x, a, 0, 0);
  }
  if (length == 3 && geo.dilation[2] == 1) {
    const auto find = [&](int j) {
      const int at = b + j * geo.dilation[1];
      find_three(job, first + int64_t{at} * g.c, active && at >= 0 && at < g.b, c,
                 table + int64_t{j} * 3 * job.capacity);
    };
    if (lines == 3) {
#pragma unroll
      for (int j = 0; j < 3; ++j) find(j);
    } else {
      for (int j = 0; j < lines; ++j) find(j);
    }
  } else {
    for (int j = 0; j < lines; ++j) {
      const int at = b + j * geo.dilation[1];
      find_any(job, first + int64_t{at} * g.c, active && at >= 0 && at < g.b, c, length,
               geo.dilation[2], table + int64_t{j} * length * job.capacity);
    }
  }
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

cudaError_t build_tables(const TableTask* tasks, int number_of_tasks, cudaStream_t stream) {
  for (int i = 0; i < number_of_tasks; ++i) {
    if (!good(tasks[i])) return cudaErrorInvalidValue;
  }
  Jobs jobs;
  jobs.number = 0;
  int64_t blocks = 0;
  const auto flush = [&] {
    if (blocks > 0) table_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(jobs);
    jobs.number = 0;
    blocks = 0;
  };
  for (int i = 0; i < number_of_tasks; ++i) {
    const TableTask& t = tasks[i];
    if (t.capacity == 0) continue;
    const unsigned row_blocks = blocks_for(t.capacity);
    const int64_t more = int64_t{row_blocks} * t.geometry.kernel[0];
    if (jobs.number == kTasks || blocks + more > INT32_MAX) flush();
    jobs.job[jobs.number++] = {reinterpret_cast<const int4*>(t.out_indices), t.out_count,
                               static_cast<int32_t>(t.capacity), static_cast<uint32_t>(blocks),
                               static_cast<int32_t>(row_blocks), t.in_order, t.table, t.geometry,
                               view_of(t.in)};
    blocks += more;
  }
  flush();
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
