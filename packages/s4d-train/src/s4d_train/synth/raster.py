"""A z-buffered rasteriser for convex quads on vectorised numpy.

All faces of an image are scan-converted at once: rows of faces, then pixels of rows. The winner of
a pixel is found by one ``maximum.at`` on 64-bit keys (inverse depth above, face number below), and
only winners are shaded afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .geometry import Array

__all__ = ["NEAR", "Fragments", "Visibility", "cover", "resolve"]

NEAR = 0.2
"""Nearest depth that is drawn, metres."""
_KEY_SCALE = float(2**31 - 1) * NEAR


@dataclass(frozen=True)
class Fragments:
    """Every (face, pixel) pair that a set of faces covers, before hiding."""

    pixel: npt.NDArray[np.int64]
    """(n,) row * width + column."""
    face: npt.NDArray[np.int64]
    """(n,) row of the face array given to :func:`cover`."""
    inverse_depth: npt.NDArray[np.float64]
    """(n,) 1 / metres."""


@dataclass(frozen=True)
class Visibility:
    """What is seen at each pixel."""

    face: npt.NDArray[np.int64]
    """(H * W,) face number, -1 where nothing."""
    depth: npt.NDArray[np.float64]
    """(H * W,) metres along the optical axis, infinity where nothing."""


def _clip_near(quad: Array) -> list[Array]:
    """The part of a convex quad (4, 3) with depth >= NEAR as quads."""
    points: list[Array] = []
    for i in range(4):
        a, b = quad[i], quad[(i + 1) % 4]
        if a[2] >= NEAR:
            points.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            points.append(a + (NEAR - a[2]) / (b[2] - a[2]) * (b - a))
    return [
        np.stack([points[0], points[i], points[i + 1], points[min(i + 2, len(points) - 1)]])
        for i in range(1, len(points) - 1, 2)
    ]


def cover(quads: Array, intrinsic: Array, width: int, height: int) -> Fragments:
    """Scan-convert faces (F, 4, 3) given in camera coordinates; a pixel counts by its centre."""
    ids = np.arange(len(quads))
    behind = quads[:, :, 2] < NEAR
    whole = ~behind.any(1)
    partly = np.flatnonzero(behind.any(1) & ~behind.all(1))
    pieces, piece_ids = [quads[whole]], [ids[whole]]
    for face in partly:
        cut = _clip_near(quads[face])
        if cut:
            pieces.append(np.stack(cut))
            piece_ids.append(np.full(len(cut), face))
    quads, ids = np.concatenate(pieces), np.concatenate(piece_ids)

    u = intrinsic[0, 0] * quads[:, :, 0] / quads[:, :, 2] + intrinsic[0, 2]
    v = intrinsic[1, 1] * quads[:, :, 1] / quads[:, :, 2] + intrinsic[1, 2]
    first = np.clip(np.ceil(v.min(1) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(v.max(1) - 0.5), 0, height).astype(np.int64)
    seen = (last > first) & (u.max(1) > 0) & (u.min(1) < width)
    u, v, quads, ids = u[seen], v[seen], quads[seen], ids[seen]
    first, rows = first[seen], (last - first)[seen]

    # 1/z is affine in the pixel: n . (K^-1 p) / (n . vertex).
    normal = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    offset = np.einsum("fi,fi->f", normal, quads[:, 0])
    offset = np.where(np.abs(offset) < 1e-12, 1e-12, offset)
    plane = normal / offset[:, None]
    slope_u = plane[:, 0] / intrinsic[0, 0]
    slope_v = plane[:, 1] / intrinsic[1, 1]
    constant = plane[:, 2] - slope_u * intrinsic[0, 2] - slope_v * intrinsic[1, 2]

    face, row = _expand(rows)
    row += first[face]
    centre = row + 0.5
    left = np.full(len(face), np.inf)
    right = np.full(len(face), -np.inf)
    for i in range(4):
        k = (i + 1) % 4
        ua, va, ub, vb = u[face, i], v[face, i], u[face, k], v[face, k]
        crosses = (va <= centre) != (vb <= centre)
        rise = np.where(crosses, vb - va, 1.0)
        at = ua + (centre - va) / rise * (ub - ua)
        np.minimum(left, np.where(crosses, at, np.inf), out=left)
        np.maximum(right, np.where(crosses, at, -np.inf), out=right)
    start = np.clip(np.ceil(left - 0.5), 0, width)
    stop = np.clip(np.ceil(right - 0.5), 0, width)
    lengths = np.maximum(stop - start, 0).astype(np.int64)

    span, column = _expand(lengths)
    column += start.astype(np.int64)[span]
    base = (constant[face] + slope_v[face] * centre)[span]
    inverse = base + slope_u[face][span] * (column + 0.5)
    return Fragments(row[span] * width + column, ids[face][span], inverse)


def _expand(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For counts c: the owner of each of sum(c) items, and its number within the owner."""
    owner = np.repeat(np.arange(len(counts)), counts)
    begin = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - begin[owner]


def resolve(fragments: Fragments, pixels: int) -> Visibility:
    """Keep the nearest fragment of each pixel."""
    inverse = np.clip(fragments.inverse_depth, 1e-6, 1.0 / NEAR)
    keys = ((inverse * _KEY_SCALE).astype(np.int64) << 32) | fragments.face
    best = np.full(pixels, -1, dtype=np.int64)
    np.maximum.at(best, fragments.pixel, keys)
    hit = best >= 0
    face = np.where(hit, best & 0xFFFFFFFF, -1)
    depth = np.where(hit, _KEY_SCALE / np.maximum(best >> 32, 1), np.inf)
    return Visibility(face, depth)
