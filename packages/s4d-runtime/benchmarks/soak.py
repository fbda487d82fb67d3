"""Soak: many frames with faults among them; memory, latency and drift are watched.

    python benchmarks/soak.py NAME.s4d --frames 100000 --json soak.json
    python benchmarks/soak.py NAME.s4d --processes 20 --threads 1 --frames 5000 --json soak.json

Every fault of ``s4d_runtime.policy`` is injected at random (about one frame in twenty), under a
tolerant policy, with a seed of its own for each pipeline. Passes if in each process neither
resident nor device memory of the second half grows by more than ``--growth`` megabytes, no frame
raised, and a fresh pipeline that replays the frames since the last reset (at least the last 100)
gives the same boxes, bit for bit. Exit code 0 or 1. SIGINT (Ctrl-C, to all processes) ends it
early, with the replay and the result of what ran. Without a terminal each sample of the first
process's memory is a line on stderr.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from threading import Event
from typing import Any

import numpy as np
from tqdm import tqdm

from s4d_runtime import Camera, Detections, Frame, Pipeline
from s4d_runtime.cli.bench import process_memory
from s4d_runtime.rig import rig_frames
from s4d_runtime.stats import Stats

REPLAY = 100
DRIFT = 0.0  # the same engine on the same frames


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


def stream(
    pipeline: Pipeline, args: argparse.Namespace, seed: int, stop: Event
) -> Iterator[tuple[str, Frame]]:
    """Frames with faults; time goes on smoothly after each. The last ones are without."""
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in args.raw_size.split("x"))
    frames = rig_frames(pipeline.manifest, (height, width), interval=0.1, seed=seed)
    left = args.frames
    for frame in frames:
        if stop.is_set():
            left = min(left, REPLAY)
        if left <= 0:
            return
        left -= 1
        quiet = left < REPLAY  # at least so many frames are replayed at the end
        yield ("", frame) if quiet or rng.random() > args.faults else faults(rng, frame)


def run(
    pipeline: Pipeline,
    args: argparse.Namespace,
    seed: int,
    stop: Event,
    memory: Memory | None,
    bar: bool,
) -> Result:
    """Drive one pipeline; what happened since its last reset is kept for the replay."""
    result = Result()
    pipeline.stats = Stats(window=args.frames)
    source = stream(pipeline, args, seed, stop)
    start = time.perf_counter()
    shown = tqdm(source, total=args.frames, unit="frame", disable=None if bar else True)
    for number, (kind, frame) in enumerate(shown):
        result.kinds[kind or "sound"] += 1
        detections = pipeline(frame)
        assert pipeline.last is not None
        if pipeline.last.outcome in ("first", "reset"):
            result.recent.clear()
        # The best boxes only: what is kept for the replay must not look like a leak.
        result.recent.append((frame, None if detections is None else best(detections)))
        if memory is not None and number % max(1, args.frames // 200) == 0:
            memory.sample(pipeline)
            if bar and shown.disable:
                seconds, resident = time.perf_counter() - start, memory.resident[-1] / 1e6
                print(f"{number} frames, {seconds:.0f} s, {resident:.1f} MB", file=sys.stderr)
        result.frames += 1
        if args.seconds and time.perf_counter() - start > args.seconds:
            stop.set()
    result.seconds = time.perf_counter() - start
    return result


def best(detections: Detections) -> np.ndarray:
    """A copy of the boxes with the highest scores."""
    return detections.boxes[:20].copy()


@dataclass
class Result:
    """One pipeline's run."""

    kinds: Counter[str] = field(default_factory=Counter)
    recent: list[tuple[Frame, np.ndarray | None]] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0


@dataclass
class Memory:
    """Memory over a run: resident, of the whole device, and what the engine itself holds."""

    resident: list[int] = field(default_factory=list)
    device: list[int] = field(default_factory=list)
    engine: list[int] = field(default_factory=list)

    def sample(self, pipeline: Pipeline) -> None:
        held = pipeline.memory()
        self.resident.append(process_memory()["resident"])
        self.device.append(held.pop("device_in_use_by_all", 0))
        self.engine.append(sum(held.values()))

    @staticmethod
    def growth(samples: list[int], extreme: Callable[[list[int]], int] = max) -> float:
        """Megabytes from the second quarter's highest to the second half's highest."""
        half = len(samples) // 2
        if half < 2:
            return 0.0
        return (extreme(samples[half:]) - extreme(samples[half // 2 : half])) / 1e6

    def report(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name in ("resident", "device", "engine"):
            samples = getattr(self, name)
            if any(samples):
                result[f"{name}_mb"] = [round(s / 1e6, 2) for s in samples]
                # Other users of a device only add to what it holds: the lowest is ours.
                extreme = min if name == "device" else max
                result[f"{name}_growth_mb"] = self.growth(samples, extreme)
        return result


def soak(args: argparse.Namespace, process: int) -> dict[str, Any]:
    """One process: pipelines in threads, then the replay of each."""
    memory = Memory()
    seeds = [args.seed + process * args.pipelines + n for n in range(args.pipelines)]
    stop = Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    with ExitStack() as stack:
        pipelines = [
            stack.enter_context(
                Pipeline.load(args.artifact, args.backend, threads=args.threads, policy="tolerant")
            )
            for _ in seeds
        ]
        with ThreadPoolExecutor(args.pipelines) as pool:
            jobs = [
                pool.submit(
                    run, pipeline, args, seed, stop, None if n else memory, n + process == 0
                )
                for n, (pipeline, seed) in enumerate(zip(pipelines, seeds, strict=True))
            ]
            results = [job.result() for job in jobs]
        snapshots = [pipeline.stats.snapshot() for pipeline in pipelines]
        choice = pipelines[0].backend_choice
    with ThreadPoolExecutor(args.pipelines) as pool:
        drift = max(pool.map(lambda result: replay(args, result.recent), results))
    return {
        "backend": choice,
        "frames": sum(r.frames for r in results),
        "seconds": max(r.seconds for r in results),
        "injected": dict(sum((r.kinds for r in results), Counter())),
        **memory.report(),
        "replayed": sum(len(r.recent) for r in results),
        "drift": drift,
        "pipelines": snapshots,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("artifact")
    parser.add_argument("--frames", type=int, default=100_000, help="for each pipeline")
    parser.add_argument("--faults", type=float, default=0.05, help="share of frames with a fault")
    parser.add_argument("--raw-size", default="180x320")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--growth", type=float, default=4.0, help="megabytes allowed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop early, after so long")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--pipelines", type=int, default=1, help="so many in threads of each process"
    )
    parser.add_argument(
        "--fused", action="store_true", help="fail unless the engine runs fused operators"
    )
    parser.add_argument("--json")
    args = parser.parse_args()

    if args.processes == 1:
        reports = [soak(args, 0)]
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # each process ends by itself
        with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
            reports = list(pool.map(soak, [args] * args.processes, range(args.processes)))
    total = summary(args, reports)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**total, "processes": reports}, file, indent=1)
    print(json.dumps(total))
    return 0 if total["passed"] else 1


def summary(args: argparse.Namespace, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes did, and the worst of each figure."""
    kinds = sum((Counter(r["injected"]) for r in reports), Counter())
    pipelines = [p for r in reports for p in r["pipelines"]]
    counters = sum((Counter(p["counters"]) for p in pipelines), Counter())
    growth = {
        name: max(r[name] for r in reports)
        for name in ("resident_growth_mb", "device_growth_mb", "engine_growth_mb")
        if name in reports[0]
    }
    choices = sorted({r["backend"] for r in reports})
    frames, drift = sum(r["frames"] for r in reports), max(r["drift"] for r in reports)
    seconds = max(r["seconds"] for r in reports)
    passed = max(growth.values(), default=0.0) <= args.growth and drift <= DRIFT
    if args.fused:
        passed = passed and all(" fused" in c and "without fused" not in c for c in choices)
    # A frame is answered or skipped; one that raises ends the run.
    passed = passed and counters["frames"] + counters["skipped"] == frames
    return {
        "passed": passed,
        "backend": choices,
        "frames": frames,
        "faults": frames - kinds["sound"],
        "seconds": seconds,
        "fps": frames / seconds,
        **growth,
        "replayed": sum(r["replayed"] for r in reports),
        "drift": drift,
        "latency_ms_of_the_slowest": {
            key: max(p["latency_ms"]["total"][key] for p in pipelines)
            for key in ("p50", "p99", "p999", "max")
        },
        "injected": dict(kinds),
        "counters": dict(counters),
    }


def replay(args: argparse.Namespace, recent: list[tuple[Frame, np.ndarray | None]]) -> float:
    """Largest difference of a fresh pipeline's boxes on the frames since the last reset."""
    worst = 0.0
    with Pipeline.load(
        args.artifact, args.backend, threads=args.threads, policy="tolerant"
    ) as fresh:
        for frame, boxes in recent:
            result = fresh(frame)
            if (result is None) != (boxes is None):
                return float("inf")
            if result is not None and boxes is not None:
                worst = max(worst, float(np.abs(best(result) - boxes).max()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
