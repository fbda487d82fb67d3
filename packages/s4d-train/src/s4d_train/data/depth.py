"""Sparse depth maps from the LiDAR sweep, for the auxiliary depth loss (REFERENCE A3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["EMPTY", "depth_maps"]

EMPTY = -1.0
_NEAREST = 0.1


def depth_maps(
    points: npt.NDArray[Any],
    lidar2img: npt.NDArray[Any],
    size: tuple[int, int],
    strides: Sequence[int],
    max_depth: float,
) -> list[npt.NDArray[np.float32]]:
    """Depth of the nearest point in each cell, per camera and stride.

    Args:
        points: (n, 3) in the LiDAR frame.
        lidar2img: (N, 4, 4) to pixels of the network image.
        size: (height, width) of the network image.
        strides: cell sizes in pixels.
        max_depth: farther points are set to this depth, metres.

    Returns:
        per stride (N, height // stride, width // stride) float32 metres, -1 in empty cells.
    """
    height, width = size
    cameras = len(lidar2img)
    maps = [
        np.full((cameras, (height // s) * (width // s)), EMPTY, dtype=np.float32) for s in strides
    ]
    matrix = np.asarray(lidar2img, dtype=np.float32)
    cloud = np.ascontiguousarray(points.T, dtype=np.float32)
    # All cameras in one product: (3 N, 3) x (3, n).
    projected = (matrix[:, :3, :3].reshape(-1, 3) @ cloud).reshape(cameras, 3, -1)
    projected += matrix[:, :3, 3:]
    for camera in range(cameras):
        # Most points are behind or beside a camera: depth first, then the rest for those before it.
        ahead = np.flatnonzero(projected[camera, 2] >= _NEAREST)
        distance = projected[camera, 2, ahead]
        pixel = projected[camera, :2, ahead]
        pixel /= distance[:, None]
        inside = np.flatnonzero(
            (pixel[:, 0] >= 0) & (pixel[:, 0] < width) & (pixel[:, 1] >= 0) & (pixel[:, 1] < height)
        )
        order = inside[np.argsort(-distance[inside], kind="stable")]
        depth = np.minimum(distance[order], max_depth)
        column, row = pixel[order, 0].astype(np.int64), pixel[order, 1].astype(np.int64)
        for target, stride in zip(maps, strides, strict=True):
            cells_x, cells_y = width // stride, height // stride
            x, y = column // stride, row // stride
            keep = (x < cells_x) & (y < cells_y)
            # Far to near: the last write to a cell is its nearest point.
            target[camera, y[keep] * cells_x + x[keep]] = depth[keep]
    return [m.reshape(cameras, height // s, width // s) for m, s in zip(maps, strides, strict=True)]
