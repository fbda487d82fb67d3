// Standalone: every stage of sparse convolution on CUDA against the CPU core.
// Usage: check [points.fp16.bin]   (a cloud of five halves a point, 105 086 voxels expected)
//        check --small             (few rows, for compute-sanitizer)
#include "sparse_check.h"

int main(int argc, char** argv) {
  const bool brief = argc > 1 && std::string(argv[1]) == "--small";
  const auto report = [](const char* stage) {
    std::printf("%s: %d of %d checks failed so far\n", stage, failures, checks);
  };
  check_sites_and_tables(brief);
  report("sites and tables");
  check_convolutions(brief);
  report("convolutions");
  check_gradients(brief);
  check_layouts();
  report("gradients and layouts");
  check_voxels(brief, argc > 1 && !brief ? argv[1] : nullptr);
  std::printf("%d of %d checks failed\n", failures, checks);
  return failures != 0;
}
