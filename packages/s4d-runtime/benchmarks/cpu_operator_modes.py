"""Frames per second on the CPU: artifacts in turn, so that other work's load hits all alike.

    python benchmarks/cpu_operator_modes.py TINY_PLUGIN.s4d TINY_STANDARD.s4d --threads 2

The first artifact is the one that the others are compared with. Each turn is a few frames: the
threads of the artifact before still spin for some milliseconds and take the cores. Prints a
Markdown table. CPU time counts all threads, also while they wait for each other: only with
``--threads 1`` is it the work.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from itertools import islice

import numpy as np
from tqdm import tqdm

from s4d_runtime import Pipeline
from s4d_runtime.rig import rig_frames

TURN = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("artifacts", nargs="+", help="NAME.s4d ...")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--raw-size", default="900x1600")
    args = parser.parse_args()
    height, width = (int(v) for v in args.raw_size.split("x"))
    with ExitStack() as stack:
        pipelines = [
            stack.enter_context(Pipeline.load(path, "onnxruntime-cpu", threads=args.threads))
            for path in args.artifacts
        ]
        times: list[list[float]] = [[] for _ in pipelines]
        work: list[list[float]] = [[] for _ in pipelines]
        sources = [rig_frames(p.manifest, (height, width)) for p in pipelines]
        for _ in tqdm(range(-(-args.frames // TURN)), unit="turn", disable=None):
            for index, (pipeline, source) in enumerate(zip(pipelines, sources, strict=True)):
                for number, frame in enumerate(islice(source, TURN + 1)):
                    start, used = time.perf_counter(), time.process_time()
                    pipeline(frame)
                    if number > 0:  # the first one warms up, and the others' threads come to rest
                        times[index].append(time.perf_counter() - start)
                        work[index].append(time.process_time() - used)
    print("| artifact | median ms | best ms | frames/s | ratio | CPU ms | CPU ratio |")
    print("|---|---|---|---|---|---|---|")
    first = np.array(times[0])
    for path, samples, used_by in zip(args.artifacts, times, work, strict=True):
        median = float(np.median(samples))
        ratio = float(np.median(np.array(samples) / first))
        print(
            f"| {path.rpartition('/')[2]} | {median * 1e3:.1f} | {min(samples) * 1e3:.1f} | "
            f"{1 / median:.2f} | {ratio:.2f} | {np.median(used_by) * 1e3:.1f} | "
            f"{np.median(used_by) / np.median(work[0]):.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
