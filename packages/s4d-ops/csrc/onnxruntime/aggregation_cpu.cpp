#include "aggregation_cpu.h"

#include "core/parallel.h"

namespace s4d_ort {
namespace {

struct Work {
  void (*run)(void*);
  void* data;
};

// The session's own threads, so that its intra_op_num_threads holds here too.
bool run_on_session(void* pointer, int count, void (*work)(void*), void* data) {
  const AggregationCall& call = *static_cast<const AggregationCall*>(pointer);
  Work item{work, data};
  const auto once = [](void* item_pointer, std::size_t) {
    const Work& todo = *static_cast<const Work*>(item_pointer);
    todo.run(todo.data);
  };
  OrtStatus* status =
      call.api.parallel_for(call.context, once, static_cast<std::size_t>(count), &item);
  if (!status) return true;
  call.api.release(status);
  return false;
}

std::string run(AggregationCall& call) {
  const s4d::HostThreads threads(&run_on_session, &call);
  return s4d::aggregation_forward_cpu(call.args);
}

}  // namespace

Provider cpu_provider() { return {"CPUExecutionProvider", &run}; }

}  // namespace s4d_ort
