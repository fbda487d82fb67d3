"""Voxels of point clouds on numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._sparse_arrays import Triple, call, triple
from .errors import InvalidInputError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["Voxels", "voxelize"]


@dataclass(frozen=True)
class Voxels:
    """What :func:`voxelize` returns; rows in the order of each voxel's first point.

    Attributes:
        cells: (M, 3) int32 x y z.
        features: (M, C) float32, mean of the kept points.
        kept: (M,) int32, points in the mean.
        total: (M,) int32, points that fell into the voxel.
        refused_voxels: cells that found no room under ``max_voxels``; 0 without a limit.
        refused_points: points of those cells.
        outside_points: points outside the range or the grid, or not finite.
    """

    cells: NDArray[np.int32]
    features: NDArray[np.float32]
    kept: NDArray[np.int32]
    total: NDArray[np.int32]
    refused_voxels: int
    refused_points: int
    outside_points: int

    def indices(self, order: str = "zyx", batch: int = 0) -> NDArray[np.int32]:
        """(M, 4) int32 index rows ``batch z y x`` or, with order "xyz", ``batch x y z``."""
        if order not in ("zyx", "xyz"):
            raise InvalidInputError(f'expected order "zyx" or "xyz", got {order!r}')
        cells = self.cells[:, ::-1] if order == "zyx" else self.cells
        rows = np.empty((len(cells), 4), np.int32)
        rows[:, 0] = batch
        rows[:, 1:] = cells
        return rows


def voxelize(
    points: NDArray[Any],
    low: Sequence[float],
    high: Sequence[float],
    size: Sequence[float],
    grid_shape_xyz: Triple | None = None,
    *,
    max_points: int = 10,
    max_voxels: int = 0,
) -> Voxels:
    """Group points into voxels and average them.

    All arithmetic is float32. A point counts if ``low <= p < high`` on every axis and its cell
    ``floor((p - low) / size)``, with a true division, lies inside the grid; NaN and infinite
    coordinates do not count. A voxel keeps its first ``max_points`` points in file order; the mean
    is their sum in that order divided by their number.

    Args:
        points: (P, C >= 3), x y z first, metres.
        low, high, size: range and voxel size, x y z, metres.
        grid_shape_xyz: cells along x y z; default round((high - low) / size).
        max_voxels: 0 is no limit. With a limit, voxels born after it was reached are refused with
            all their points, and the result says how many.
    """
    if grid_shape_xyz is None:
        grid_shape_xyz = [
            round((float(h) - float(lo)) / float(s))
            for lo, h, s in zip(low, high, size, strict=True)
        ]
    return Voxels(
        *call(
            "sparse_voxelize", np.ascontiguousarray(points, np.float32),
            [float(v) for v in low], [float(v) for v in high], [float(v) for v in size],
            triple(grid_shape_xyz, "grid_shape_xyz"), max_points, max_voxels,
        )
    )  # fmt: skip
