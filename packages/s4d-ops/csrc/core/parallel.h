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
// here. While another caller holds the pool, the work is done on the calling thread alone. Calls do
// not nest.
void parallel_for(int64_t count, int64_t grain, int threads,
                  const std::function<void(int64_t, int64_t)>& body);

// Lends the threads of a host (torch, ONNX Runtime) to every parallel_for of the calling thread,
// as long as the object lives: the host's limits on threads then hold for the kernels too, and no
// second pool competes with the first. `run(context, count, work, data)` calls work(data) `count`
// times, on any threads, and returns when all calls have; false means that it called none.
class HostThreads {
 public:
  using Run = bool (*)(void* context, int count, void (*work)(void*), void* data);
  HostThreads(Run run, void* context);
  ~HostThreads();
  HostThreads(const HostThreads&) = delete;
  HostThreads& operator=(const HostThreads&) = delete;

 private:
  friend bool run_on_host(int count, void (*work)(void*), void* data);
  Run run_;
  void* context_;
  HostThreads* outer_;
};

}  // namespace s4d
