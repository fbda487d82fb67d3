"""What `model_zoo.py` measures of `compile_inference`: speed and memory beside the plain model."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from zoo_models import frame, prepared

import s4d_core
from s4d_core import Sparse4D, Sparse4DConfig
from s4d_core.inference import CompiledModel, compile_inference

__all__ = ["compiled"]

Part = dict[str, Any]
WARM_UP = 3


def compiled(
    config: Sparse4DConfig,
    device: str,
    frames: int,
    look: Callable[[str, CompiledModel], None] | None = None,
) -> Part:
    """Frames per second of plain `forward` and of `compile_inference`, state fed back.

    Batch 1; normalised images are on the device, results come to the host. float32 without TF32:
    `forward` as it is, and "fp32x3" (without CUDA: "fp32"). fp16: under autocast, and compiled.

    Args:
        look: is given every compiled model after its measurement.

    Returns:
        `fps_*` and `eager_fps_*` by precision; `gb_*`, what torch has reserved with the compiled
        model alone on the device; `build_s_*`; `difference_*`, the largest difference of scores by
        rank from `forward` in float32, first frame.
    """
    model = prepared(config, device)
    shown = [frame(config, device, i) for i in range(2 + _ahead(config))]
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        rate, wanted = _plain(model, shown, frames, False)
        result: Part = {"eager_fps_fp32": rate, "eager_fps_fp16": None}
        if device == "cuda":
            result["eager_fps_fp16"] = _plain(model, shown, frames, True)[0]
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    model = model.cpu()
    for precision in ("fp16", "fp32x3" if device == "cuda" else "fp32"):
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            free = torch.cuda.memory_reserved()
        start = time.perf_counter()
        fast = compile_inference(model, precision=precision, device=device)
        result[f"build_s_{precision}"] = time.perf_counter() - start
        for given in shown[: 1 + fast.delay]:
            fast(*_call(given))
        scores = fast._frame.detections().scores
        result[f"difference_{precision}"] = float((scores - wanted).abs().max())
        result[f"fps_{precision}"] = _rate(
            lambda given, fast=fast: fast(*_call(given)), shown, frames, device
        )
        if device == "cuda":
            torch.cuda.empty_cache()
            result[f"gb_{precision}"] = (torch.cuda.memory_reserved() - free) / 1e9
        if look is not None:
            look(precision, fast)
        del fast
    return result


def _ahead(config: Sparse4DConfig) -> int:
    queue = config.queue
    return queue.length if queue is not None and queue.frames == "future" else 0


def _call(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """A frame as `CompiledModel` takes it."""
    return tuple(given[n] for n in ("images", "lidar2img", "timestamp", "lidar2global"))


@torch.no_grad()
def _plain(
    model: Sparse4D, shown: list[dict[str, Tensor]], frames: int, half: bool
) -> tuple[float, Tensor]:
    """Frames per second, and the scores of the first frame (1, K) on the host."""
    device = shown[0]["images"].device.type
    with torch.autocast(device, torch.float16) if half else nullcontext():
        future = [
            model.observe(**{k: v for k, v in given.items() if k != "image_wh"})
            for given in shown[1 : 1 + _ahead(model.config)]
        ]
        state: Any = None
        first: list[Tensor] = []

        def step(given: dict[str, Tensor]) -> None:
            nonlocal state
            output = model(**given, state=state, future=future)
            state = output.state
            found = s4d_core.decode(output, model.config)
            first.append(found[0].scores.cpu()[None])

        step(shown[0])
        state = None
        return _rate(step, shown, frames, device), first[0]


def _rate(
    step: Callable[[dict[str, Tensor]], Any],
    shown: list[dict[str, Tensor]],
    frames: int,
    device: str,
) -> float:
    """Frames per second by the median time of a call."""
    times = []
    for i in range(frames + WARM_UP):
        given = {**shown[i % 2]}
        given["timestamp"] = torch.full_like(given["timestamp"], 0.5 * (1 + min(i, 8)))
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step(given)
        times.append(time.perf_counter() - start)
    return 1 / sorted(times[WARM_UP:])[frames // 2]
