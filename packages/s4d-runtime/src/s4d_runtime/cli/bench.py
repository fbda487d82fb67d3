"""``s4d-run bench``: latency per stage and memory, on noise images or a data set's."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..artifact import Manifest
    from ..frame import Frame
    from ..pipeline import Pipeline

__all__ = ["add_arguments", "process_memory", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", help="NAME.s4d")
    parser.add_argument("--frames", type=int, default=100, help="frames measured (100)")
    parser.add_argument("--warmup", type=int, default=10, help="frames before that (10)")
    parser.add_argument(
        "--raw-size", default="900x1600", metavar="HxW", help="raw image size (900x1600)"
    )
    parser.add_argument("--interval", type=float, default=0.1, help="seconds between frames (0.1)")
    parser.add_argument("--data", help="take the images of this nuScenes data set, in turn")
    parser.add_argument("--backend", default="auto", help="engine (auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: engine's choice)")
    parser.add_argument(
        "--images",
        choices=("host", "pinned", "prepared"),
        default="host",
        help="host: ordinary arrays. pinned: in the engine's image buffers. prepared: a second "
        "thread prepares each camera's next image while the frame runs (host)",
    )
    parser.add_argument("--device", type=int, default=0, help="number of the CUDA device (0)")
    parser.add_argument("--tf32", action="store_true", help="allow TF32 on the GPU")
    parser.add_argument(
        "--no-fp32x3",
        action="store_true",
        help="no float32 products as sums of half-precision ones",
    )
    parser.add_argument("--no-cuda-graph", action="store_true", help="do not replay CUDA graphs")
    parser.add_argument("--no-fuse", action="store_true", help="only ONNX Runtime's operators")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--prometheus", action="store_true", help="print Prometheus text instead")


def run(args: argparse.Namespace) -> int:
    from ..errors import UsageError
    from ..pipeline import Pipeline

    if args.frames < 1 or args.warmup < 0:
        raise UsageError("expected --frames of at least 1 and --warmup of at least 0")
    before = process_memory()["resident"]
    start = time.perf_counter()
    with Pipeline.load(
        args.artifact,
        args.backend,
        threads=args.threads,
        device=args.device,
        tf32=args.tf32,
        cuda_graph=not args.no_cuda_graph,
        fuse=not args.no_fuse,
        fp32x3=not args.no_fp32x3,
    ) as pipeline:
        load_seconds = time.perf_counter() - start
        at_rest = process_memory()["resident"]
        report = _measure(pipeline, args)
    memory = process_memory()
    report["load_s"] = load_seconds
    report["memory_bytes"] = {
        "process_before": before,
        "process_loaded": at_rest,
        "process_now": memory["resident"],
        "process_peak": memory["peak"],
    }
    if args.json:
        from ..files import write_bytes

        write_bytes(args.json, json.dumps(report, indent=2).encode() + b"\n")
    print(report["prometheus"] if args.prometheus else _table(report), end="")
    return 0


def _measure(pipeline: Pipeline, args: argparse.Namespace) -> dict[str, Any]:
    from tqdm import tqdm

    from ..stats import Stats

    frames = _fed(pipeline, _frames(pipeline.manifest, args), args)
    for _ in range(args.warmup):
        pipeline(next(frames))
    pipeline.stats = Stats(window=args.frames)
    calls = 0.0
    begin = time.perf_counter()
    for _ in tqdm(range(args.frames), unit="frame", disable=None, leave=False):
        frame = next(frames)
        start = time.perf_counter()
        pipeline(frame)
        calls += time.perf_counter() - start
    # Preparing beside the frames is work that counts; making pictures up is not.
    wall = time.perf_counter() - begin if args.images == "prepared" else calls
    frames.close()
    engine = pipeline.memory()
    return {
        "artifact": str(args.artifact),
        "model": pipeline.manifest.name,
        "precision": pipeline.manifest.precision,
        "operator": pipeline.manifest.op,
        "backend": pipeline.backend_name,
        "backend_choice": pipeline.backend_choice,
        "threads": args.threads,
        "images": f"{args.data or f'noise {args.raw_size}'}, {args.images}",
        "frames": args.frames,
        "fps": args.frames / wall,
        **pipeline.stats.snapshot(),
        "engine_memory_bytes": engine,
        "prometheus": pipeline.stats.prometheus(),
    }


def _frames(manifest: Manifest, args: argparse.Namespace) -> Iterator[Frame]:
    from dataclasses import replace

    from ..errors import DatasetError, UsageError
    from ..rig import rig_frames

    try:
        height, width = (int(part) for part in args.raw_size.lower().split("x"))
    except ValueError:
        raise UsageError(f"expected --raw-size as HxW, got {args.raw_size!r}") from None
    frames = rig_frames(manifest, (height, width), args.interval)
    if args.data is None:
        yield from frames
        return
    from ..nuscenes import NuScenes

    dataset = NuScenes(args.data)
    tokens = [t for s in dataset.scenes for t in s.samples][:8]
    if not tokens:
        raise DatasetError(f"{args.data} has no samples")
    stored = [dataset.frame(t, manifest.preprocessing.camera_names) for t in tokens]
    # The pictures and calibration of the data set on the rig's smooth path, so that it can loop.
    for number, moving in enumerate(frames):
        picture = stored[number % len(stored)]
        yield replace(moving, images=picture.images, cameras=picture.cameras)


def _fed(
    pipeline: Pipeline, frames: Iterator[Frame], args: argparse.Namespace
) -> Generator[Frame, None, None]:
    """The frames with their images where ``--images`` wants them."""
    from concurrent.futures import ThreadPoolExecutor
    from dataclasses import replace
    from itertools import islice

    if args.images == "host":
        yield from frames
        return
    if args.images == "pinned":
        buffers: list[Any] = []
        for frame in frames:
            buffers = buffers or pipeline.image_buffers([i.shape[:2] for i in frame.images])
            for buffer, image in zip(buffers, frame.images, strict=True):
                buffer[...] = image
            yield replace(frame, images=buffers)

    def prepare(frame: Frame) -> Frame:
        images = [pipeline.prepare(camera, image) for camera, image in enumerate(frame.images)]
        return replace(frame, images=images)

    # Made beforehand, so that only the preparing runs beside the frames.
    made = islice(frames, args.warmup + args.frames + 1)
    with ThreadPoolExecutor(1, "s4d-cameras") as pool:
        coming = pool.submit(prepare, next(made))
        for following in made:
            ready, coming = coming.result(), pool.submit(prepare, following)
            yield ready


def process_memory() -> dict[str, int]:
    """Bytes: resident memory of this process now and at its peak (0 where Linux's /proc is not)."""
    fields = {"VmRSS": "resident", "VmHWM": "peak"}
    memory = dict.fromkeys(fields.values(), 0)
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                key, _, value = line.partition(":")
                if key in fields:
                    memory[fields[key]] = int(value.split()[0]) * 1024
    except OSError:
        pass
    return memory


def _table(report: dict[str, Any]) -> str:
    memory = report["memory_bytes"]
    lines = [
        f"{report['model']} ({report['precision']}, {report['operator']} operator) "
        f"on {report['backend_choice']}",
        f"{report['frames']} frames, {report['images']}: {report['fps']:.2f} frames per second",
        f"{'stage':<9}"
        + "".join(f"{k:>10}" for k in ("p50", "p90", "p99", "p999", "max"))
        + "   milliseconds",
    ]
    for stage, values in report["latency_ms"].items():
        figures = "".join(f"{values[k]:10.3f}" for k in ("p50", "p90", "p99", "p999", "max"))
        lines.append(f"{stage:<9}{figures}")
    lines.append(
        f"memory: {memory['process_before'] / 1e6:.0f} MB before, "
        f"{memory['process_loaded'] / 1e6:.0f} MB loaded, "
        f"{memory['process_now'] / 1e6:.0f} MB at work, "
        f"{memory['process_peak'] / 1e6:.0f} MB peak; loaded in {report['load_s']:.2f} s"
    )
    engine = {k: v for k, v in report["engine_memory_bytes"].items() if v}
    if engine:
        lines.append("engine: " + ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in engine.items()))
    return "\n".join(lines) + "\n"
