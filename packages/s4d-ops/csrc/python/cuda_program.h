// A list of the core's calls with their addresses, built once and launched as often as wanted, on
// any stream, also under capture into a CUDA graph. Some may run beside the others, on a second
// stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace s4d::sparse::cuda {

// The number and text of a CUDA error, for the exception that Python raises.
class CudaFailure : public std::runtime_error {
 public:
  CudaFailure(cudaError_t code, const std::string& where)
      : std::runtime_error(where + ": " + cudaGetErrorName(code) + " (" +
                           std::to_string(static_cast<int>(code)) + "), " +
                           cudaGetErrorString(code)) {}
};

inline void require(cudaError_t code, const char* where) {
  if (code != cudaSuccess) throw CudaFailure(code, where);
}

class CallList {
 public:
  // fork(): calls go to a second stream, which waits for what the main one has so far. back(): to
  // the main stream again. aside(): to the second stream once more, without waiting. join(): the main
  // stream waits for what the second one has so far.
  void fork() {
    aside_ = true;
    add("fork", nullptr, Kind::fork);
  }
  void aside() { aside_ = true; }
  void back() { aside_ = false; }
  void join() { add("join", nullptr, Kind::join); }

  // Launches everything; nothing waits. Without a second stream all calls come one after another.
  // `event` is used for the meetings of the streams and may be used again at once. The first call
  // that CUDA refuses is named.
  void run(cudaStream_t stream, cudaStream_t side, cudaEvent_t event) const {
    if (!side) side = stream;
    for (const Call& call : calls_) {
      if (call.kind == Kind::work) {
        require(call.body(call.aside ? side : stream), call.name);
      } else if (side != stream) {
        const bool fork = call.kind == Kind::fork;
        require(cudaEventRecord(event, fork ? stream : side), "cudaEventRecord");
        require(cudaStreamWaitEvent(fork ? side : stream, event, 0), "cudaStreamWaitEvent");
      }
    }
  }

  // Median device time of each call in microseconds, over `rounds` runs as one CUDA graph. One call
  // after another, none beside the others; an event behind each adds about one microsecond.
  std::vector<std::pair<std::string, float>> profile(cudaStream_t stream,
                                                     int rounds) const;

  size_t size() const { return calls_.size(); }

 protected:
  using Body = std::function<cudaError_t(cudaStream_t)>;
  void add(const char* name, Body body) { add(name, std::move(body), Kind::work); }

 private:
  enum class Kind { work, fork, join };
  struct Call {
    const char* name;
    Body body;
    Kind kind;
    bool aside;
  };

  void add(const char* name, Body body, Kind kind) {
    calls_.push_back({name, std::move(body), kind, aside_});
  }

  std::vector<Call> calls_;
  bool aside_ = false;
};

}  // namespace s4d::sparse::cuda
