"""Anchors: seeded K-means over the centres of the training objects (REFERENCE A2.3)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from s4d_train.errors import DataError

from .index import DriveIndex

__all__ = ["cluster", "make_anchors", "save_anchors"]

Array = npt.NDArray[np.float64]
_ROUNDS = 300


def make_anchors(
    index: DriveIndex,
    split: str | None,
    count: int = 900,
    *,
    max_distance: float = 55.0,
    seed: int = 0,
) -> Array:
    """(count, 11) float64 anchors ``x y z log_w log_l log_h sin cos vx vy vz``.

    Centres are the K-means centres of all annotated objects of the ten classes within
    ``max_distance`` metres (in space); the size is the logarithm of their mean size, the heading
    is along x, the velocity 0.

    Args:
        index: of ``convert``.
        split: such as ``train``; None: everything.
        count: of anchors.
        max_distance: metres.
        seed: of the first centres; the same seed gives the same anchors.

    Raises:
        DataError: fewer objects than anchors.
    """
    rows = index.samples(split)
    chosen = np.zeros(len(index.label), dtype=bool)
    for row in rows:
        chosen[index.annotations(int(row))] = True
    boxes = np.asarray(index.box)
    chosen &= (np.asarray(index.label) >= 0) & (np.isfinite(boxes).all(1))
    chosen &= np.linalg.norm(boxes[:, :3], axis=1) <= max_distance
    boxes = boxes[chosen]
    if count < 1:
        raise DataError(f"expected at least one anchor, got a count of {count}")
    if len(boxes) < count:
        raise DataError(
            f"{count} anchors need at least as many objects within {max_distance:g} m, found "
            f"{len(boxes)}; convert more scenes or ask for fewer (--count)"
        )
    anchors = np.zeros((count, 11))
    anchors[:, :3] = cluster(boxes[:, :3], count, seed)
    anchors[:, 3:6] = np.log(boxes[:, 3:6].mean(0))
    anchors[:, 7] = 1.0
    return anchors


def cluster(points: npt.NDArray[Any], count: int, seed: int) -> Array:
    """(count, d) K-means centres of (n, d) points: k-means++ start, then Lloyd's iterations.

    The result is a function of points, count and seed. Clusters that run empty take the point that
    is farthest from its centre. Arthur and Vassilvitskii, 2007; Lloyd, 1982.
    """
    points = np.asarray(points, dtype=np.float64)
    rng = np.random.default_rng(seed)
    centres = np.empty((count, points.shape[1]))
    centres[0] = points[rng.integers(len(points))]
    nearest = ((points - centres[0]) ** 2).sum(1)
    for k in range(1, count):
        total = nearest.sum()
        if total > 0:
            pick = int(np.searchsorted(np.cumsum(nearest), rng.random() * total, side="right"))
        else:  # fewer different points than centres
            pick = int(rng.integers(len(points)))
        centres[k] = points[min(pick, len(points) - 1)]
        np.minimum(nearest, ((points - centres[k]) ** 2).sum(1), out=nearest)

    owner = np.full(len(points), -1)
    for _ in range(_ROUNDS):
        distance, new = cKDTree(centres).query(points)
        if (new == owner).all():
            break
        owner = new
        size = np.bincount(owner, minlength=count)
        sums = np.stack(
            [np.bincount(owner, points[:, d], count) for d in range(points.shape[1])], 1
        )
        filled = size > 0
        centres[filled] = sums[filled] / size[filled, None]
        empty = np.flatnonzero(~filled)
        centres[empty] = points[np.argsort(-distance, kind="stable")[: len(empty)]]
    return centres


def save_anchors(anchors: Array, path: str | Path) -> Path:
    """Write a .npy file, beside and renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(path.name + ".partial")
    with work.open("wb") as file:
        np.save(file, anchors, allow_pickle=False)
    os.replace(work, path)
    return path
