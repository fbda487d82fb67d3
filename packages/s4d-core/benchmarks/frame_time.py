"""Milliseconds per frame of the named models, by part.

    python benchmarks/frame_time.py [--models NAME ...] [--frames 10] [--threads 2]
        [--device cpu] [--dtype float32|float16|bfloat16] [--channels-last]

Weights are random, the rig is six cameras around the vehicle, so that as many key points fall
into images as on the road. Frames after the first are timed, medians are shown. `float16` and
`bfloat16` run under autocast. Parts are timed one by one, with the device waited for in between;
"frame" is timed on its own, without that.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import s4d_core
from s4d_core import aggregation

PARTS = (
    "frame",
    "backbone",
    "neck",
    "head, all of it",
    "  anchor encoder",
    "  attention, temporal",
    "  attention, self",
    "  aggregation",
    "    of it the operator",
    "  ffn",
    "  refinement, boxes",
)
AZIMUTHS = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)


def rig(config: s4d_core.Sparse4DConfig) -> Tensor:
    """(N, 4, 4) LiDAR frame to pixels: nuScenes-like azimuths, 70 degrees field of view."""
    height, width = config.image.size
    matrices = []
    for camera in range(config.num_cameras):
        angle = math.radians(AZIMUTHS[camera % len(AZIMUTHS)])
        forward = torch.tensor([-math.sin(angle), math.cos(angle), 0.0])
        right = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
        rotation = torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), forward])
        extrinsic = torch.eye(4)
        extrinsic[:3, :3] = rotation
        extrinsic[:3, 3] = -rotation @ (0.7 * forward + torch.tensor([0.0, 0.0, -0.3]))
        intrinsic = torch.eye(4)
        intrinsic[0, 0] = intrinsic[1, 1] = 0.5 * width / math.tan(math.radians(35))
        intrinsic[0, 2], intrinsic[1, 2] = width / 2, height / 3
        matrices.append(intrinsic @ extrinsic)
    return torch.stack(matrices)


class Clock:
    """Sums time per part and frame."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.frame: dict[str, float] = defaultdict(float)
        self.frames: list[dict[str, float]] = []

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def next_frame(self) -> None:
        self.frames.append(dict(self.frame))
        self.frame.clear()

    def watch(self, name: str, module: nn.Module) -> None:
        """Time every call of `module` under `name`."""
        begun: list[float] = []

        def before(*_: Any) -> None:
            self.wait()
            begun.append(time.perf_counter())

        def after(*_: Any) -> None:
            self.wait()
            self.frame[name] += time.perf_counter() - begun.pop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    @contextmanager
    def watch_op(self) -> Iterator[None]:
        """Time the aggregation operator inside its block."""
        plain: Callable = aggregation.deformable_aggregation

        def timed(*args: Any) -> Tensor:
            self.wait()
            begin = time.perf_counter()
            result = plain(*args)
            self.wait()
            self.frame["    of it the operator"] += time.perf_counter() - begin
            return result

        aggregation.deformable_aggregation = timed  # type: ignore[assignment]
        try:
            yield
        finally:
            aggregation.deformable_aggregation = plain  # type: ignore[assignment]

    def medians(self) -> dict[str, float]:
        """Part -> median milliseconds."""
        names = {name for frame in self.frames for name in frame}
        values = {n: statistics.median(f.get(n, 0.0) for f in self.frames) * 1e3 for n in names}
        return {name: values[name] for name in PARTS if name in values}


def watch_parts(clock: Clock, model: s4d_core.Sparse4D) -> None:
    clock.watch("backbone", model.backbone)
    clock.watch("neck", model.neck)
    clock.watch("head, all of it", model.head)
    clock.watch("  anchor encoder", model.head.anchor_encoder)
    for layer in model.head.decoders:
        for name, part in (
            ("  attention, temporal", layer.temporal_attention),
            ("  attention, self", layer.self_attention),
            ("  aggregation", layer.aggregation),
            ("  ffn", layer.ffn),
            ("  refinement, boxes", layer.refinement),
        ):
            if part is not None:
                clock.watch(name, part)


@torch.no_grad()
def measure(name: str, args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    model = s4d_core.build_model(name).eval().to(device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    config, (height, width) = model.config, model.config.image.size
    images = torch.randn(1, config.num_cameras, 3, height, width, device=device)
    lidar2img = rig(config)[None].to(device)
    image_wh = torch.tensor([width, height], device=device).float().expand(1, len(rig(config)), 2)
    pose = torch.eye(4, dtype=torch.float64, device=device)[None]
    dtype = getattr(torch, args.dtype)
    half = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()

    def run(count: int, clock: Clock, whole: bool) -> None:
        state = None
        for step in range(count + 2):
            stamp = torch.tensor([0.5 * step], dtype=torch.float64, device=device)
            clock.wait()
            begin = time.perf_counter()
            output = model(images, lidar2img, image_wh, stamp, pose, state)
            s4d_core.decode_tensors(
                output.cls[-1], output.quality[-1], output.box[-1], output.track_ids, config
            )
            clock.wait()
            if whole:
                clock.frame["frame"] = time.perf_counter() - begin
            state = output.state
            clock.next_frame()
        del clock.frames[:2]  # the first frame, and warming up

    with half:
        whole = Clock(device)
        run(args.frames, whole, True)
        parts = Clock(device)
        watch_parts(parts, model)
        with parts.watch_op():
            run(args.frames, parts, False)
    print(f"\n{name}: {height}x{width}, {args.dtype}, {args.device}, {args.threads} threads")
    for part, milliseconds in {**whole.medians(), **parts.medians()}.items():
        print(f"  {part:24s} {milliseconds:9.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description="milliseconds per frame, by part")
    parser.add_argument("--models", nargs="+", default=s4d_core.list_models())
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models:
        measure(name, args)


if __name__ == "__main__":
    main()
