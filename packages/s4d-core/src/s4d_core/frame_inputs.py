"""Checks of what a frame is given: shapes that belong together, time and pose in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import Sparse4DConfig
from .errors import InvalidInputError
from .observation import Observation

__all__ = ["check_frame", "farthest_first"]


def check_frame(
    images: Tensor,
    lidar2img: Tensor,
    image_wh: Tensor,
    timestamp: Tensor,
    lidar2global: Tensor,
) -> None:
    """Arguments of `Sparse4D.forward`.

    Raises:
        InvalidInputError: shapes that do not belong together, or time or pose not float64.
    """
    if images.dim() != 5 or images.shape[2] != 3:
        raise InvalidInputError(f"expected images (B, N, 3, H, W), got {tuple(images.shape)}")
    batch, cameras = images.shape[:2]
    expected = {
        "lidar2img": (lidar2img, (batch, cameras, 4, 4)),
        "image_wh": (image_wh, (batch, cameras, 2)),
        "timestamp": (timestamp, (batch,)),
        "lidar2global": (lidar2global, (batch, 4, 4)),
    }
    for name, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise InvalidInputError(
                f"expected {name} {shape} for images {tuple(images.shape)}, got "
                f"{tuple(value.shape)}"
            )
    for name, value in (("timestamp", timestamp), ("lidar2global", lidar2global)):
        if value.dtype != torch.float64:
            raise InvalidInputError(
                f"expected {name} in float64, got {value.dtype}: float32 cannot hold absolute "
                "times and global positions"
            )


def farthest_first(future: Sequence[Observation], config: Sparse4DConfig) -> list[Observation]:
    """Frames to come, given with the nearest first.

    Raises:
        InvalidInputError: more than the model samples.
    """
    queue = config.queue
    limit = queue.length if queue is not None and queue.frames == "future" else 0
    if len(future) > limit:
        raise InvalidInputError(
            f"expected at most {limit} frames to come for {config.name}, got {len(future)}"
        )
    return list(future)[::-1]
