#include "parallel.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace s4d {
namespace {

struct Job {
  const std::function<void(int64_t, int64_t)>* body;
  int64_t count;
  int64_t grain;
  std::atomic<int64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;

  void work() {
    try {
      for (;;) {
        const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= count) return;
        (*body)(begin, std::min(count, begin + grain));
      }
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
};

class Pool {
 public:
  // One caller at a time; false if another one is inside.
  bool run(Job& job, int helpers) {
    if (occupied_.exchange(true, std::memory_order_acquire)) return false;
    helpers = grow(helpers);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      tickets_ = helpers;
      busy_ = helpers;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    // A helper that has not woken yet is not needed any more.
    busy_ -= tickets_;
    tickets_ = 0;
    done_.wait(lock, [this] { return busy_ == 0; });
    job_ = nullptr;
    occupied_.store(false, std::memory_order_release);
    return true;
  }

 private:
  // Starts threads up to `wanted`; returns how many there are for this call. A system that gives
  // no more threads is not an error: the work is then done with those there are.
  int grow(int wanted) {
    while (started_ < wanted) {
      try {
        std::thread([this] { loop(); }).detach();
      } catch (const std::system_error&) {
        break;
      }
      ++started_;
    }
    return std::min(wanted, started_);
  }

  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return tickets_ > 0; });
      --tickets_;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--busy_ == 0) done_.notify_all();
    }
  }

  std::atomic<bool> occupied_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  int tickets_ = 0;
  int busy_ = 0;
  int started_ = 0;
};

std::atomic<Pool*> current_pool{nullptr};
std::atomic<pid_t> pool_owner{0};
std::mutex pool_mutex;

// The pool is never destroyed: its threads sleep until the process ends, and no destructor can
// run after the library's memory is gone. A forked child has none of the parent's threads, so it
// makes a pool of its own.
Pool* pool() {
  if (pool_owner.load(std::memory_order_acquire) != getpid()) {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    if (pool_owner.load(std::memory_order_relaxed) != getpid()) {
      current_pool.store(new Pool, std::memory_order_relaxed);
      pool_owner.store(getpid(), std::memory_order_release);
    }
  }
  return current_pool.load(std::memory_order_acquire);
}

int cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

thread_local HostThreads* host_threads = nullptr;

}  // namespace

HostThreads::HostThreads(Run run, void* context)
    : run_(run), context_(context), outer_(host_threads) {
  host_threads = this;
}

HostThreads::~HostThreads() { host_threads = outer_; }

bool run_on_host(int count, void (*work)(void*), void* data) {
  const HostThreads* host = host_threads;
  return host && host->run_(host->context_, count, work, data);
}

int default_threads() {
  static const int threads = [] {
    const char* text = std::getenv("S4D_NUM_THREADS");
    const int wanted = text ? std::atoi(text) : 0;
    return wanted > 0 ? std::min(wanted, 1024) : cores();
  }();
  return threads;
}

void parallel_for(int64_t count, int64_t grain, int threads,
                  const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  if (threads <= 0) threads = default_threads();
  const int64_t ranges = (count + grain - 1) / grain;
  const int helpers = static_cast<int>(std::min<int64_t>(threads, ranges)) - 1;
  Job job;
  job.body = &body;
  job.count = count;
  job.grain = grain;
  const auto work = [](void* data) { static_cast<Job*>(data)->work(); };
  if (helpers <= 0) {
    job.work();
  } else if (!run_on_host(helpers + 1, work, &job) && !pool()->run(job, helpers)) {
    job.work();
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace s4d
