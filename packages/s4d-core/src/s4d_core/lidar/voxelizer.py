"""Point clouds to voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from s4d_ops import sparse_torch

from ..errors import InvalidInputError

__all__ = ["VoxelBatch", "Voxelizer", "VoxelizerConfig"]


@dataclass(frozen=True)
class VoxelizerConfig:
    """Range, voxel size (x y z, metres) and limits; the defaults are CenterPoint's for nuScenes.

    ``grid_shape_xyz`` are the cells that points may fall into. ``max_voxels`` per sample, 0 for no
    limit. A voxel keeps its first ``max_points`` points.
    """

    low: tuple[float, float, float] = (-54.0, -54.0, -5.0)
    high: tuple[float, float, float] = (54.0, 54.0, 3.0)
    size: tuple[float, float, float] = (0.075, 0.075, 0.2)
    grid_shape_xyz: tuple[int, int, int] = (1440, 1440, 40)
    max_points: int = 10
    max_voxels: int = 0
    index_order: Literal["zyx", "xyz"] = "zyx"


@dataclass(frozen=True)
class VoxelBatch:
    """Voxels of a batch.

    Attributes:
        features: (V, C) float32, mean of the kept points.
        indices: (V, 4) int32, batch and three axes in the config's index order.
        kept: (V,) int32, points in the mean.
        batch_size: number of clouds.
        refused_voxels, refused_points: what found no room under ``max_voxels``, all samples.
        outside_points: points outside the range or the grid, or not finite.
    """

    features: Tensor
    indices: Tensor
    kept: Tensor
    batch_size: int
    refused_voxels: int
    refused_points: int
    outside_points: int


class Voxelizer(nn.Module):
    """Mean of the points of each voxel; see ``s4d_ops.sparse.voxelize`` for the exact rule."""

    def __init__(self, config: VoxelizerConfig | None = None) -> None:
        super().__init__()
        self.config = config or VoxelizerConfig()
        if self.config.index_order not in ("zyx", "xyz"):
            raise InvalidInputError(
                f'expected index_order "zyx" or "xyz", got {self.config.index_order!r}'
            )

    @torch.no_grad()
    def forward(self, clouds: Sequence[Tensor]) -> VoxelBatch:
        """Voxelise each cloud, (P, C >= 3) with x y z first.

        Raises:
            InvalidInputError: no cloud, a single tensor instead of a list, or bad shapes.
        """
        if isinstance(clouds, Tensor) or not clouds:
            raise InvalidInputError("expected a list of point clouds (P, C), one per sample")
        config = self.config
        results = [
            sparse_torch.voxelize(
                points, config.low, config.high, config.size, config.grid_shape_xyz,
                config.max_points, config.max_voxels,
            )
            for points in clouds
        ]  # fmt: skip
        rows = []
        for sample, result in enumerate(results):
            cells = result.cells.flip(1) if config.index_order == "zyx" else result.cells
            rows.append(torch.nn.functional.pad(cells, (1, 0), value=sample))
        return VoxelBatch(
            torch.cat([r.features for r in results]),
            torch.cat(rows),
            torch.cat([r.kept for r in results]),
            len(results),
            sum(r.refused_voxels for r in results),
            sum(r.refused_points for r in results),
            sum(r.outside_points for r in results),
        )
