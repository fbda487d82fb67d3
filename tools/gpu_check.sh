#!/bin/sh
# Everything that needs a CUDA device: builds s4d-ops with this machine's Python (no virtual
# environment, no network), runs the GPU tests of all packages and prints the benchmark table.
#
#   tools/gpu_check.sh [build] [test] [bench] [sanitize]
#
# Without arguments: build, test, bench. `sanitize` runs compute-sanitizer on small odd shapes.
# PYTHON names the interpreter; S4D_CUDA_ARCHITECTURES the GPU architectures (default: this one's).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ $# -gt 0 ] || set -- build test bench
PYTHONPATH=
for package in core train export runtime; do
  PYTHONPATH=$PYTHONPATH:$PWD/packages/s4d-$package/src
done
export PYTHONPATH

for step in "$@"; do
  case $step in
    build)
      if [ -z "${S4D_CUDA_ARCHITECTURES:-}" ]; then
        S4D_CUDA_ARCHITECTURES=$("$python" -c \
          'import torch; print("%d%d" % torch.cuda.get_device_capability())')-real
        export S4D_CUDA_ARCHITECTURES
      fi
      CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
      export CMAKE_BUILD_PARALLEL_LEVEL S4D_TORCH=ON S4D_CUDA=ON
      "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index \
        --force-reinstall ./packages/s4d-ops
      ;;
    test)
      status=0
      for package in ops core train export runtime; do
        # Only files with such tests: others import what this machine need not have.
        files=$(grep -l 'mark\.gpu' packages/s4d-$package/tests/*.py || true)
        [ -z "$files" ] || (cd "packages/s4d-$package" &&
          "$python" -m pytest -q -m gpu $(printf '%s\n' $files | sed 's#.*/tests/#tests/#')) ||
          status=$?
      done
      [ $status -eq 0 ] || exit $status
      ;;
    bench)
      "$python" packages/s4d-ops/benchmarks/cuda_aggregation.py
      ;;
    sanitize)
      for tool in memcheck racecheck initcheck; do
        compute-sanitizer --tool $tool --error-exitcode 1 --print-limit 5 \
          "$python" packages/s4d-ops/tools/gpu_odd_shapes.py
      done
      ;;
    *)
      echo "usage: gpu_check.sh [build] [test] [bench] [sanitize]" >&2
      exit 2
      ;;
  esac
done
