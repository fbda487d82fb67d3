"""Load and close an artifact again and again; memory is watched.

    python benchmarks/reload.py NAME.s4d --cycles 100 --json reload.json

Each cycle loads a pipeline, runs three frames and closes it. Passes if neither resident memory nor
that of the whole device is more than ``--growth`` megabytes higher in the second half of the cycles
than in the second quarter. Exit code 0 or 1.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from contextlib import suppress
from itertools import islice
from typing import Any

from soak import Memory
from tqdm import tqdm

from s4d_runtime import Pipeline
from s4d_runtime.rig import rig_frames


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-fuse", action="store_true", help="as in s4d-run bench")
    parser.add_argument("--no-graph", action="store_true", help="without CUDA graphs")
    parser.add_argument("--growth", type=float, default=4.0, help="megabytes allowed")
    parser.add_argument("--json")
    args = parser.parse_args()

    options: dict[str, Any] = {
        "threads": args.threads,
        "fuse": not args.no_fuse,
        "cuda_graph": not args.no_graph,
    }
    memory, loading, choice = Memory(), [], ""
    # It stays open, so that the device's context and the libraries' own memory do.
    with Pipeline.load(args.artifact, args.backend, **options) as watcher:
        for _ in tqdm(range(args.cycles), unit="load", disable=None):
            start = time.perf_counter()
            with Pipeline.load(args.artifact, args.backend, **options) as pipeline:
                loading.append(time.perf_counter() - start)
                for frame in islice(rig_frames(pipeline.manifest, (180, 320)), 3):
                    pipeline(frame)
                choice = pipeline.backend_choice
            with suppress(AttributeError, OSError):  # other C libraries have no such call
                ctypes.CDLL(None).malloc_trim(0)  # else its free lists hide what is lost
            memory.sample(watcher)
    figures = memory.report()
    growth = max(value for key, value in figures.items() if key.endswith("growth_mb"))
    report = {
        "passed": growth <= args.growth,
        "backend": choice,
        "cycles": args.cycles,
        "load_s": {"median": sorted(loading)[len(loading) // 2], "max": max(loading)},
        **figures,
    }
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    print(json.dumps({k: v for k, v in report.items() if not isinstance(v, list)}))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
