"""Soak: many frames with faults among them; memory, latency and drift are watched.

    python benchmarks/soak.py NAME.s4d --frames 100000 --json soak.json

Every fault of ``s4d_runtime.policy`` is injected at random (about one frame in twenty), under a
tolerant policy. Passes if the resident memory of the second half does not grow by more than
``--growth`` megabytes, every refused frame had a named cause, and a fresh pipeline that replays
the last frames since a reset gives the same boxes. Exit code 0 or 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from s4d_runtime import Camera, Frame, Pipeline
from s4d_runtime.cli.bench import process_memory
from s4d_runtime.rig import rig_frames

REPLAY = 100


def faults(rng: np.random.Generator, frame: Frame) -> tuple[str, Frame]:
    """One fault of a random kind."""
    camera = int(rng.integers(len(frame.images)))
    images, cameras = list(frame.images), list(frame.cameras)
    kind = str(
        rng.choice(
            ["missing", "size", "dtype", "nan", "mirror", "past", "same", "gap", "jump", "turn"]
        )
    )
    pose = np.array(frame.lidar2global)
    if kind == "missing":
        images[camera] = None
    elif kind == "size":
        images[camera] = images[camera][:-2]
    elif kind == "dtype":
        images[camera] = images[camera][:16].astype(np.float32)
    elif kind == "nan":
        cameras[camera] = Camera(cameras[camera].intrinsic * np.nan, cameras[camera].lidar2camera)
    elif kind == "mirror":
        flip = np.diag([1.0, -1.0, 1.0, 1.0])
        cameras[camera] = Camera(cameras[camera].intrinsic, flip @ cameras[camera].lidar2camera)
    elif kind in ("past", "same", "gap"):
        step = {"past": -0.35, "same": -0.1, "gap": 3.0}[kind]
        return kind, replace(frame, timestamp=frame.timestamp + step)
    elif kind == "jump":
        pose[0, 3] += 1000.0
    elif kind == "turn":
        pose[:3, :3] = pose[:3, :3] @ np.diag([-1.0, -1.0, 1.0])
    return kind, replace(frame, images=images, cameras=cameras, lidar2global=pose)


def stream(pipeline: Pipeline, args: argparse.Namespace) -> Iterator[tuple[str, Frame]]:
    """Frames with faults; time goes on smoothly after each."""
    rng = np.random.default_rng(args.seed)
    height, width = (int(v) for v in args.raw_size.split("x"))
    frames = rig_frames(pipeline.manifest, (height, width), interval=0.1, seed=args.seed)
    for number, frame in enumerate(frames):
        quiet = number >= args.frames - REPLAY  # at least so many frames are replayed at the end
        yield ("", frame) if quiet or rng.random() > args.faults else faults(rng, frame)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--faults", type=float, default=0.05, help="share of frames with a fault")
    parser.add_argument("--raw-size", default="180x320")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--growth", type=float, default=4.0, help="megabytes allowed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()

    kinds: Counter[str] = Counter()
    recent: deque[tuple[Frame, np.ndarray | None, str]] = deque()
    memory: list[int] = []
    with Pipeline.load(
        args.artifact, args.backend, threads=args.threads, policy="tolerant"
    ) as pipeline:
        pipeline.stats.__init__(window=args.frames)  # type: ignore[misc]
        source = stream(pipeline, args)
        start = time.perf_counter()
        for number in tqdm(range(args.frames), unit="frame", disable=None):
            kind, frame = next(source)
            kinds[kind or "sound"] += 1
            result = pipeline(frame)
            assert pipeline.last is not None
            if pipeline.last.outcome in ("first", "reset"):
                recent.clear()
            recent.append((frame, None if result is None else result.boxes, pipeline.last.outcome))
            if len(recent) > 5000:  # faults come often enough that this stays small
                recent.popleft()
            if number % max(1, args.frames // 200) == 0:
                memory.append(process_memory()["resident"])
        seconds = time.perf_counter() - start
        snapshot = pipeline.stats.snapshot()

    drift = replay(args, recent)
    half = len(memory) // 2
    growth = (max(memory[half:]) - max(memory[half // 2 : half])) / 1e6 if half > 1 else 0.0
    report = {
        "frames": args.frames,
        "seconds": seconds,
        "fps": args.frames / seconds,
        "injected": dict(kinds),
        "memory_mb": [round(m / 1e6, 2) for m in memory],
        "growth_mb": growth,
        "replayed": len(recent),
        "drift": drift,
        **snapshot,
    }
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    total = snapshot["latency_ms"]["total"]
    passed = growth <= args.growth and drift == 0.0
    print(
        f"{args.frames} frames in {seconds:.0f} s ({report['fps']:.1f}/s), "
        f"{args.frames - kinds['sound']} faults, growth {growth:.2f} MB, "
        f"p50 {total['p50']:.2f} p99 {total['p99']:.2f} p99.9 {total['p999']:.2f} ms, "
        f"drift over {len(recent)} replayed frames {drift:g}: {'pass' if passed else 'FAIL'}"
    )
    return 0 if passed else 1


def replay(args: argparse.Namespace, recent: deque) -> float:
    """Largest difference of a fresh pipeline's boxes on the frames since the last reset."""
    worst = 0.0
    with Pipeline.load(
        args.artifact, args.backend, threads=args.threads, policy="tolerant"
    ) as fresh:
        for frame, boxes, _ in recent:
            result = fresh(frame)
            if (result is None) != (boxes is None):
                return float("inf")
            if result is not None:
                worst = max(worst, float(np.abs(result.boxes - boxes).max()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
