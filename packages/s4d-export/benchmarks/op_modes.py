"""Milliseconds per frame of two artifacts of one model on one engine, run in turns.

    python benchmarks/op_modes.py PLUGIN.s4d STANDARD.s4d --threads 2 --frames 10

Turns, because other work on the machine then slows both alike; minimum and median are printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", nargs=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()

    from s4d_core import Sparse4DConfig
    from s4d_export import random_frames
    from s4d_export.rollout import EngineRunner
    from s4d_runtime import read_artifact

    runners = []
    for path in options.artifacts:
        with read_artifact(path) as artifact:
            config = Sparse4DConfig.from_dict(artifact.manifest.model)
            runners.append(EngineRunner(artifact, options.backend, options.threads))
    for frame in random_frames(config, options.frames + 1):
        for runner in runners:
            runner.step(frame)
    for path, runner in zip(options.artifacts, runners, strict=True):
        times = runner.milliseconds[1:]
        print(f"{path}: min {min(times):.1f} ms, median {statistics.median(times):.1f} ms")
    first, second = (min(runner.milliseconds[1:]) for runner in runners)
    print(f"ratio of the minima: {second / first:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
