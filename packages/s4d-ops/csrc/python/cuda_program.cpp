#include "cuda_program.h"

#include <algorithm>

namespace s4d::sparse::cuda {

namespace {

// Events and a graph that go when the profile is over, also by an exception.
struct Recording {
  std::vector<cudaEvent_t> events;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t run = nullptr;

  ~Recording() {
    for (cudaEvent_t event : events) cudaEventDestroy(event);
    if (run) cudaGraphExecDestroy(run);
    if (graph) cudaGraphDestroy(graph);
  }
};

}  // namespace

std::vector<std::pair<std::string, float>> CallList::profile(cudaStream_t stream,
                                                             int rounds) const {
  std::vector<const Call*> work;
  for (const Call& call : calls_) {
    if (call.kind == Kind::work) work.push_back(&call);
  }
  Recording recording;
  recording.events.resize(work.size() + 1);
  for (cudaEvent_t& event : recording.events) require(cudaEventCreate(&event), "cudaEventCreate");
  const auto mark = [&](size_t i) {
    require(cudaEventRecordWithFlags(recording.events[i], stream, cudaEventRecordExternal),
            "cudaEventRecordWithFlags");
  };
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
  try {
    mark(0);
    for (size_t i = 0; i < work.size(); ++i) {
      require(work[i]->body(stream), work[i]->name);
      mark(i + 1);
    }
  } catch (...) {
    cudaStreamEndCapture(stream, &recording.graph);
    throw;
  }
  require(cudaStreamEndCapture(stream, &recording.graph), "cudaStreamEndCapture");
  require(cudaGraphInstantiate(&recording.run, recording.graph, 0), "cudaGraphInstantiate");
  std::vector<std::vector<float>> times(work.size());
  for (int round = 0; round < rounds; ++round) {
    require(cudaGraphLaunch(recording.run, stream), "cudaGraphLaunch");
    require(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    for (size_t i = 0; i < work.size(); ++i) {
      float ms = 0.0f;
      require(cudaEventElapsedTime(&ms, recording.events[i], recording.events[i + 1]),
              "cudaEventElapsedTime");
      times[i].push_back(1e3f * ms);
    }
  }
  std::vector<std::pair<std::string, float>> medians;
  for (size_t i = 0; i < work.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    medians.emplace_back(work[i]->name, times[i].empty() ? 0.0f : times[i][times[i].size() / 2]);
  }
  return medians;
}

}  // namespace s4d::sparse::cuda
