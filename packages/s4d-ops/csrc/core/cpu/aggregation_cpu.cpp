// CPU entry points of deformable aggregation: tables, scratch memory and the split over threads.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../deformable_aggregation.h"
#include "../parallel.h"
#include "kernels.h"

namespace s4d {
namespace {

constexpr std::size_t kAlign = 64;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) {
  const std::size_t size = (static_cast<std::size_t>(bytes) + kAlign - 1) / kAlign * kAlign;
  void* memory = std::aligned_alloc(kAlign, std::max(size, kAlign));
  if (!memory) throw std::bad_alloc();
  return Memory(memory);
}

const AggregationTable* table_for(DType type) {
  const KernelTables& tables = kernel_tables();
  switch (type) {
    case DType::f32: return &tables.f32;
    case DType::f64: return &tables.f64;
    case DType::f16: return &tables.f16;
    case DType::bf16: return &tables.bf16;
    default: return nullptr;
  }
}

std::vector<Level> read_levels(const AggregationShape& shape, DType index_type,
                               const void* spatial_shapes, const void* level_start_index) {
  const auto at = [index_type](const void* data, int64_t i) -> int64_t {
    if (index_type == DType::i64) return static_cast<const int64_t*>(data)[i];
    return static_cast<const int32_t*>(data)[i];
  };
  std::vector<Level> levels(static_cast<std::size_t>(shape.views * shape.levels));
  for (std::size_t i = 0; i < levels.size(); ++i) {
    const int64_t k = static_cast<int64_t>(i);
    levels[i] = {at(level_start_index, k), at(spatial_shapes, 2 * k),
                 at(spatial_shapes, 2 * k + 1)};
  }
  return levels;
}

// Anchors are given out a few at a time: those in view cost far more than those outside.
int64_t grain_of(int64_t items, int threads) {
  return std::clamp<int64_t>(items / (16 * std::max(1, threads)), 1, 64);
}

void zero(void* data, int64_t bytes, int threads) {
  constexpr int64_t block = int64_t{1} << 20;
  parallel_for((bytes + block - 1) / block, 1, threads, [=](int64_t first, int64_t last) {
    const int64_t begin = first * block, end = std::min(bytes, last * block);
    std::memset(static_cast<char*>(data) + begin, 0, static_cast<std::size_t>(end - begin));
  });
}

// Channels are split into blocks of whole cache lines: threads then never touch the same line,
// and each element is summed by one thread in the order of the anchors.
void feature_gradient(const AggregationLoops& loops, const AggregationTable& table, DType type,
                      void* out, int threads) {
  const AggregationShape& s = loops.shape;
  const bool direct = type == DType::f32 || type == DType::f64;
  const int64_t sum_size = type == DType::f64 ? 8 : 4;
  const int64_t size = s.rows * s.channels;
  const int64_t stored = static_cast<int64_t>(size_of(type));
  const int64_t line = static_cast<int64_t>(kAlign) / sum_size;
  const int64_t wanted = (s.channels + threads - 1) / threads;
  const int64_t block = std::max<int64_t>(line, (wanted + line - 1) / line * line);
  const int64_t blocks = (s.channels + block - 1) / block;
  const Memory sums = direct ? Memory() : allocate(size * sum_size);
  for (int64_t batch = 0; batch < s.batch; ++batch) {
    char* const target = static_cast<char*>(out) + batch * size * stored;
    void* const rows = direct ? target : sums.get();
    zero(rows, size * sum_size, threads);
    parallel_for(blocks, 1, threads, [&](int64_t first, int64_t last) {
      const Memory scratch = allocate(table.scratch_bytes(s));
      for (int64_t i = first; i < last; ++i) {
        table.backward_features(loops, batch, i * block, std::min(s.channels, (i + 1) * block),
                                rows, scratch.get());
      }
    });
    if (direct) continue;
    parallel_for(s.rows, 256, threads, [&](int64_t first, int64_t last) {
      table.store(static_cast<const char*>(rows) + first * s.channels * sum_size,
                  target + first * s.channels * stored, (last - first) * s.channels);
    });
  }
}

// What both passes do around their loops: checks, the level table, the inputs; `work` gets the
// loops and the number of threads. Returns the problem, or an empty string.
template <class Args, class Work>
std::string with_loops(const char* what, const Args& args, int threads, const Work& work) {
  const AggregationShape& s = args.shape;
  const std::string problem =
      check_level_table(s, args.index_type, args.spatial_shapes, args.level_start_index);
  if (!problem.empty()) return problem;
  try {
    const std::vector<Level> levels =
        read_levels(s, args.index_type, args.spatial_shapes, args.level_start_index);
    AggregationLoops loops = {};
    loops.shape = s;
    loops.location_type = args.location_type;
    loops.weight_type = args.weight_type;
    loops.levels = levels.data();
    loops.features = args.features;
    loops.locations = args.locations;
    loops.weights = args.weights;
    work(loops, threads > 0 ? threads : default_threads());
    return {};
  } catch (const std::bad_alloc&) {
    return std::string(what) + ": not enough memory for scratch space";
  } catch (const std::exception& error) {
    return std::string(what) + ": " + error.what();
  }
}

// Runs `loop(loops, first, last, scratch)` over all anchors of the batch, a few at a time.
template <class Loop>
void over_anchors(const AggregationLoops& loops, const AggregationTable& table, Loop loop,
                  int threads) {
  const AggregationShape& s = loops.shape;
  const int64_t items = s.batch * s.anchors;
  parallel_for(items, grain_of(items, threads), threads, [&](int64_t first, int64_t last) {
    const Memory scratch = allocate(table.scratch_bytes(s));
    loop(loops, first, last, scratch.get());
  });
}

}  // namespace

std::string aggregation_forward_cpu(const AggregationForward& args, int threads) {
  const AggregationTable* table = table_for(args.feature_type);
  if (!table || args.output_type != args.feature_type) {
    return std::string("deformable_aggregation: the CPU takes float features and writes their "
                       "type; got ") +
           name(args.feature_type) + " to " + name(args.output_type);
  }
  const auto work = [&](AggregationLoops& loops, int count) {
    loops.output = args.output;
    over_anchors(loops, *table, table->forward, count);
  };
  return with_loops("deformable_aggregation", args, threads, work);
}

std::string aggregation_backward_cpu(const AggregationBackward& args, int threads) {
  const AggregationTable* table = table_for(args.feature_type);
  if (!table) {
    return std::string("deformable_aggregation_backward: expected float features, got ") +
           name(args.feature_type);
  }
  const auto work = [&](AggregationLoops& loops, int count) {
    loops.grad_output = args.grad_output;
    loops.grad_locations = args.grad_locations;
    loops.grad_weights = args.grad_weights;
    if (args.grad_locations || args.grad_weights) {
      over_anchors(loops, *table, table->backward_samples, count);
    }
    if (args.grad_features) {
      feature_gradient(loops, *table, args.feature_type, args.grad_features, count);
    }
  };
  return with_loops("deformable_aggregation_backward", args, threads, work);
}

}  // namespace s4d
