"""One LiDAR sweep by ray casting: every beam ends at the nearest convex part or on the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .geometry import Array
from .rig import Lidar

__all__ = ["Parts", "Sweep", "cast"]


@dataclass(frozen=True)
class Parts:
    """Convex parts of a moment, in town coordinates, as half-spaces ``normal . x <= offset``."""

    normals: Array
    """(P, K, 3); unused rows are zero with an offset of one."""
    offsets: Array
    """(P, K)"""
    centres: Array
    """(P, 3) middle of the corners."""
    radii: Array
    """(P,) distance of the farthest corner from the middle."""
    actor: npt.NDArray[np.int64]
    """(P,) number of the annotated object, -1 for scenery."""
    brightness: Array
    """(P,) reflectivity 0..1."""

    @staticmethod
    def build(
        quads: Array,
        normals: Array,
        parts: npt.NDArray[np.int64],
        actor: npt.NDArray[np.int64],
        brightness: Array,
    ) -> Parts:
        """From faces (F, 4, 3); ``parts`` (F,) is sorted and numbers parts without a gap."""
        first = np.flatnonzero(np.diff(parts, prepend=-1))
        counts = np.diff(np.append(first, len(parts)))
        total, most = len(first), int(counts.max())
        slot = np.arange(len(parts)) - first[parts]
        planes = np.zeros((total, most, 3))
        offsets = np.ones((total, most))
        planes[parts, slot] = normals
        offsets[parts, slot] = np.einsum("fi,fi->f", normals, quads[:, 0])
        sums = np.add.reduceat(quads.sum(1), first)
        centres = sums / (4.0 * counts[:, None])
        reach = np.linalg.norm(quads - centres[parts][:, None], axis=-1).max(1)
        return Parts(
            planes,
            offsets,
            centres,
            np.maximum.reduceat(reach, first),
            actor[first],
            brightness[first],
        )


@dataclass(frozen=True)
class Sweep:
    """The points of one turn."""

    points: npt.NDArray[np.float32]
    """(n, 5) x, y, z in the LiDAR's frame, intensity 0..255, ring."""
    actor: npt.NDArray[np.int64]
    """(n,) number of the actor that was hit, -1 elsewhere."""


def cast(parts: Parts, lidar: Lidar, lidar_to_town: Array, rng: np.random.Generator) -> Sweep:
    """Fire all beams from the pose ``lidar_to_town`` (4, 4)."""
    eye = lidar_to_town[:3, 3]
    columns = lidar.columns
    angles = np.arange(columns) * (2 * np.pi / columns)
    cos_up, sin_up = np.cos(lidar.elevations), np.sin(lidar.elevations)
    local = np.stack(
        [
            np.multiply.outer(cos_up, np.cos(angles)),
            np.multiply.outer(cos_up, np.sin(angles)),
            np.repeat(sin_up[:, None], columns, 1),
        ],
        -1,
    )
    beams = local @ lidar_to_town[:3, :3].T
    start = np.arctan2(lidar_to_town[1, 0], lidar_to_town[0, 0])

    with np.errstate(divide="ignore"):
        ground = np.where(beams[..., 2] < -1e-6, -eye[2] / beams[..., 2], np.inf)
    best = ground.copy()
    owner = np.full(best.shape, -2, dtype=np.int64)
    owner[np.isfinite(ground)] = -1

    away = parts.centres - eye
    flat = np.hypot(away[:, 0], away[:, 1])
    for p in np.flatnonzero(flat - parts.radii < lidar.max_range):
        window = _window(away[p], flat[p], parts.radii[p], start, columns, lidar.elevations)
        if window is None:
            continue
        rows, cols = window
        ray = beams[rows][:, cols]
        used = slice(None)
        along = ray @ parts.normals[p, used].T
        gap = parts.offsets[p, used] - parts.normals[p, used] @ eye
        with np.errstate(divide="ignore", invalid="ignore"):
            hit = gap / along
        enter = np.where(along < 0, hit, -np.inf).max(-1)
        leave = np.where(along > 0, hit, np.inf).min(-1)
        # A plane that the ray runs along hides it only when the ray is outside.
        outside = ((along == 0) & (gap < 0)).any(-1)
        ok = (enter < leave) & (enter > 0.3) & ~outside
        here = best[rows][:, cols]
        closer = ok & (enter < here)
        if closer.any():
            best[rows, cols] = np.where(closer, enter, here)
            owner[rows, cols] = np.where(closer, p, owner[rows, cols])

    return _returns(parts, lidar, local, best, owner, rng)


def _window(
    away: Array, flat: float, radius: float, start: float, columns: int, elevations: Array
) -> tuple[slice, npt.NDArray[np.int64]] | None:
    """Beams and columns that can meet a sphere about a part."""
    inside = radius >= flat
    half = np.pi if inside else float(np.arcsin(radius / flat))
    middle = np.arctan2(away[1], away[0]) - start
    step = 2 * np.pi / columns
    first, last = int(np.floor((middle - half) / step)), int(np.ceil((middle + half) / step))
    count = min(last - first + 1, columns)
    distance = float(np.hypot(flat, away[2]))
    if radius >= distance:
        rows = slice(0, len(elevations))
    else:
        up, spread = np.arctan2(away[2], flat), np.arcsin(radius / distance)
        low, high = np.searchsorted(elevations, [up - spread, up + spread])
        if high <= low:
            return None
        rows = slice(int(low), int(high))
    return rows, (first + np.arange(count)) % columns


def _returns(
    parts: Parts,
    lidar: Lidar,
    local: Array,
    best: Array,
    owner: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> Sweep:
    """Noise, lost returns and the file's columns."""
    noisy = best + rng.normal(0.0, 0.015, best.shape)
    # Far and dark returns get lost; 0.2 % of all do anyway.
    lost = rng.random(best.shape) < 0.002 + 0.35 * np.clip(best / lidar.max_range, 0, 1) ** 2
    keep = (owner >= -1) & (best < lidar.max_range) & ~lost
    hit = owner[keep]
    distance = noisy[keep]
    shine = np.where(hit >= 0, parts.brightness[np.maximum(hit, 0)], 0.12)
    intensity = np.clip(shine * 90.0 + rng.normal(0.0, 4.0, len(hit)), 0, 255)
    ring = np.broadcast_to(np.arange(len(local))[:, None], best.shape)[keep]
    xyz = local[keep] * distance[:, None]
    points = np.column_stack([xyz, np.round(intensity), ring]).astype(np.float32)
    return Sweep(points, np.where(hit >= 0, parts.actor[np.maximum(hit, 0)], -1))
