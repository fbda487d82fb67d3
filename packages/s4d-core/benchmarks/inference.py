"""From six raw camera images on the host to boxes with ids on the host: `compile_inference`.

    python benchmarks/inference.py [--model sparse4dv3_r50] [--precision fp16 fp32 ...]
        [--modes eager graph inductor] [--frames 200] [--raw 900 1600] [--kernels] [--json FILE]

`eager` is the model as it is (in float32, or under autocast), with images resized on the device;
`graph` is `compile_inference`, `inductor` the same with `inductor=True`. Weights are random. A
frame's time is measured on the host around the whole call. Stages are captured one by one and
timed with events, 20 replays each. Needs CUDA. Memory: what torch reserved, and what the process
took from the device in all (context, libraries and workspaces included).
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame_time import rig

import s4d_core
from s4d_core.inference import CompiledModel, compile_inference
from s4d_core.inference.precision import use_tf32
from s4d_ops import image, image_cuda

DEVICE = torch.device("cuda")


class Drive:
    """Endless frames: random images, a vehicle that drives straight on at 10 m/s and 10 Hz."""

    def __init__(self, config: s4d_core.Sparse4DConfig, raw: tuple[int, int], pinned: bool) -> None:
        random = np.random.default_rng(0)
        self.images = []
        for _ in range(config.num_cameras):
            value = torch.from_numpy(random.integers(0, 256, (*raw, 3), dtype=np.uint8))
            self.images.append(value.pin_memory() if pinned else value)
        self.lidar2img = rig(config)[None]
        self.step = 0

    def frame(self) -> tuple[Any, ...]:
        self.step += 1
        pose = torch.eye(4, dtype=torch.float64)[None]
        pose[:, 1, 3] = self.step
        stamp = torch.tensor([0.1 * self.step], dtype=torch.float64)
        return self.images, self.lidar2img, stamp, pose


def eager(model: s4d_core.Sparse4D, raw: tuple[int, int], half: bool) -> Callable[..., Any]:
    """The plain model behind the same call, without fixed memory or graphs."""
    config = model.config
    plan = image.plan_resize_crop(raw, config.image.size)
    height, width = config.image.size
    wh = torch.tensor([width, height], device=DEVICE).float().expand(1, config.num_cameras, 2)
    model = model.to(DEVICE)
    if half:
        model = model.to(memory_format=torch.channels_last)
    state = None

    @torch.no_grad()
    def call(images: Any, lidar2img: Any, stamp: Any, pose: Any) -> Any:
        nonlocal state
        device_images = [x.to(DEVICE, non_blocking=True) for x in images]
        ready = torch.empty((len(images), 3, height, width), device=DEVICE)
        stream = torch.cuda.current_stream().cuda_stream
        filters = (config.image.resize_filter, config.image.mean, config.image.std)
        image_cuda.resize_crop(device_images, plan, ready, *filters, stream)
        with torch.autocast("cuda", torch.float16) if half else nullcontext():
            out = model(
                ready[None], lidar2img.to(DEVICE), wh, stamp.to(DEVICE), pose.to(DEVICE), state
            )
        state = out.state
        found = s4d_core.decode(out, config)
        return [(x.boxes.cpu(), x.scores.cpu(), x.labels.cpu(), x.track_ids.cpu()) for x in found]

    return call


def wall(call: Callable[..., Any], drive: Drive, frames: int) -> dict[str, float]:
    """Milliseconds of whole calls."""
    times = []
    for _ in range(frames + 10):
        arguments = drive.frame()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call(*arguments)
        times.append(1e3 * (time.perf_counter() - begin))
    return percentiles(times[10:])


def percentiles(times: list[float]) -> dict[str, float]:
    p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
    return {"p50": round(p50, 3), "p99": round(p99, 3), "max": round(max(times), 3)}


@torch.no_grad()
def stages(fast: CompiledModel, drive: Drive, frames: int) -> dict[str, dict[str, float]]:
    """Milliseconds of every stage: the host's by wall clock, the device's by events."""
    images = drive.images
    load = []
    for _ in range(frames):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        fast._frame.images.load(images)
        torch.cuda.synchronize()
        load.append(1e3 * (time.perf_counter() - begin))
    result = {"images to the device": percentiles(load)}
    stream = fast._stream
    assert stream is not None
    for name, step in fast._frame.steps().items():
        graph = torch.cuda.CUDAGraph()
        with fast._tf32(), torch.cuda.graph(graph, stream=stream):
            step()
        with torch.cuda.stream(stream):
            result[name] = percentiles(events(graph.replay, frames))
    if fast._graph is not None:
        with torch.cuda.stream(stream):
            result["the device's part in one graph"] = percentiles(
                events(fast._graph.replay, frames)
            )
    return result


def events(call: Callable[[], Any], count: int) -> list[float]:
    """Milliseconds of single calls on the current stream."""
    pairs = []
    for _ in range(count + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs[3:]]


def kernels(fast: CompiledModel, frames: int = 10) -> list[str]:
    """The kernels of a frame by total time."""
    from torch.profiler import ProfilerActivity, profile

    assert fast._graph is not None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(frames):
            fast._graph.replay()
        torch.cuda.synchronize()
    total: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            total[event.name] += event.self_device_time_total
            count[event.name] += 1
    head = f"{sum(count.values()) / frames:.0f} kernels, {sum(total.values()) / frames:.0f} us"
    lines = [
        f"{time_us / frames:9.1f} us {count[name] / frames:6.1f} x  {name[:150]}"
        for name, time_us in total.most_common()
    ]
    return [head, *lines]


def measure(name: str, precision: str, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    free = torch.cuda.mem_get_info()[0]
    model = s4d_core.build_model(name).eval()
    raw = tuple(args.raw)
    result: dict[str, Any] = {"model": name, "precision": precision, "mode": mode}
    drive, pinned = (Drive(model.config, raw, pinned) for pinned in (False, True))
    if mode == "eager":
        with use_tf32(precision == "tf32"):
            call = eager(model, raw, precision == "fp16")
            result["frame"] = wall(call, drive, args.frames)
    else:
        begin = time.perf_counter()
        fast = compile_inference(
            model,
            precision=precision,
            raw_size=raw,
            device=DEVICE,
            inductor=mode == "inductor",
        )
        result["build_s"] = round(time.perf_counter() - begin, 1)
        del model
        gc.collect()
        torch.cuda.empty_cache()
        result["frame"] = wall(fast, drive, args.frames)
        result["frame_pinned"] = wall(fast, pinned, args.frames)
        # Before the stages, which need memory of their own.
        result["reserved_mb"] = torch.cuda.memory_reserved() >> 20
        result["peak_reserved_mb"] = torch.cuda.max_memory_reserved() >> 20
        result["taken_mb"] = (free - torch.cuda.mem_get_info()[0]) >> 20
        result["stages"] = stages(fast, drive, 20)
        result["stages"]["pinned images to the device"] = stages(fast, pinned, 5)[
            "images to the device"
        ]
        if args.kernels:
            result["kernels"] = kernels(fast)
    result["fps"] = round(1e3 / result["frame"]["p50"], 1)
    return result


def show(result: dict[str, Any]) -> None:
    frame = result["frame"]
    print(
        f"\n{result['model']} {result['precision']} {result['mode']}: {result['fps']} frames/s, "
        f"p50 {frame['p50']:.2f} ms, p99 {frame['p99']:.2f} ms"
    )
    if "frame_pinned" in result:
        pinned = result["frame_pinned"]
        print(
            f"  images in pinned memory: p50 {pinned['p50']:.2f}, p99 {pinned['p99']:.2f} ms; "
            f"{1e3 / pinned['p50']:.1f} frames/s"
        )
        print(
            f"  memory: torch {result['reserved_mb']} MB (while building "
            f"{result['peak_reserved_mb']}), process {result['taken_mb']} MB more than before; "
            f"built in {result['build_s']} s"
        )
        for name, stage in result["stages"].items():
            print(f"  {name:32s} p50 {stage['p50']:7.3f}  p99 {stage['p99']:7.3f} ms")
    for line in result.get("kernels", [])[:45]:
        print("   ", line)


def main() -> None:
    parser = argparse.ArgumentParser(description="frames per second of compile_inference")
    parser.add_argument("--model", default="sparse4dv3_r50", choices=s4d_core.list_models())
    precisions, modes = ["fp32", "fp32x3", "tf32", "fp16"], ["eager", "graph", "inductor"]
    parser.add_argument("--precision", nargs="+", choices=precisions, default=["fp16", "fp32"])
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--raw", type=int, nargs=2, default=[900, 1600], metavar=("H", "W"))
    parser.add_argument("--kernels", action="store_true", help="list the kernels of a frame")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    args = parser.parse_args()
    torch.zeros(1, device=DEVICE)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    results = []
    for precision in args.precision:
        for mode in args.modes:
            results.append(measure(args.model, precision, mode, args))
            show(results[-1])
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
