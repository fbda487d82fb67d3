// A small thread pool of our own, so that the kernels behave the same inside torch, ONNX Runtime,
// a plain Python process and a forked data-loader worker.
#pragma once

#include <cstdint>
#include <functional>

namespace s4d {

// Threads to use when the caller does not say: S4D_NUM_THREADS, else the cores this process may
// run on.
int default_threads();

// Calls body(begin, end) for disjoint ranges that cover [0, count), on up to `threads` threads
// (<= 0: default), this one included. Ranges hold `grain` items, the last one less. Which thread
// takes which range is not fixed, so the body must not care. Exceptions of the body are rethrown
// here. While another caller holds the pool, the work is done on the calling thread alone.
void parallel_for(int64_t count, int64_t grain, int threads,
                  const std::function<void(int64_t, int64_t)>& body);

}  // namespace s4d
