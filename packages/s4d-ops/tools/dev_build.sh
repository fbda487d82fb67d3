#!/bin/sh
# Builds the native libraries in place, for work on the sources:
#   tools/dev_build.sh [python] [cmake options, e.g. -DS4D_CUDA=ON]
# They are installed into src/s4d_ops/lib, where the package looks for them.
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in
  "" | -*) python=python ;;
  *) python=$1; shift ;;
esac
python=$("$python" -c 'import sys; print(sys.executable)')
build=${S4D_BUILD_DIR:-build/dev}
generator=
command -v ninja >/dev/null 2>&1 && generator="-G Ninja"
# shellcheck disable=SC2086
cmake -S . -B "$build" $generator -DPython_EXECUTABLE="$python" "$@"
cmake --build "$build" --parallel "${S4D_BUILD_JOBS:-2}"
# Moved into place, not copied over: a running process keeps the library that it has mapped.
rm -rf "$build/stage"
cmake --install "$build" --prefix "$build/stage"
mkdir -p src/s4d_ops/lib
for library in "$build"/stage/lib/*.so; do
  mv -f "$library" src/s4d_ops/lib/
done
