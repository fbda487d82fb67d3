"""Sparse tensors: feature rows, where they lie, and the rulebooks of those sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from s4d_ops import sparse_torch
from s4d_ops.sparse_torch import Rulebook

from ..errors import InvalidInputError

__all__ = ["Sites", "SparseTensor", "StridedLink"]

Triple = tuple[int, int, int]


def triple(value: int | Sequence[int], what: str) -> Triple:
    """One number for all axes, or one per axis.

    Raises:
        InvalidInputError: another count of numbers.
    """
    numbers = [value] * 3 if isinstance(value, int) else [int(v) for v in value]
    if len(numbers) != 3:
        raise InvalidInputError(f"expected one or three numbers for {what}, got {value}")
    return numbers[0], numbers[1], numbers[2]


@dataclass
class Sites:
    """A set of active cells. All tensors on the same cells share one object and its rulebooks.

    Attributes:
        indices: (V, 4) int32 ``batch, i0, i1, i2``.
        grid_shape: sizes of the three axes.
        submanifold: rulebooks by (kernel size, dilation), built on first use.
    """

    indices: Tensor
    grid_shape: Triple
    batch_size: int
    submanifold: dict[tuple[Triple, Triple], Rulebook] = field(default_factory=dict)

    def submanifold_rulebook(self, kernel_size: Triple, dilation: Triple) -> Rulebook:
        """The rulebook of a submanifold convolution here, built once per kernel."""
        key = (kernel_size, dilation)
        if key not in self.submanifold:
            self.submanifold[key] = sparse_torch.submanifold_rulebook(
                self.indices, self.grid_shape, self.batch_size, kernel_size, dilation
            )
        return self.submanifold[key]


@dataclass(frozen=True)
class StridedLink:
    """What a strided convolution leaves behind under its key, for the inverse convolution."""

    source: Sites
    target: Sites
    rulebook: Rulebook


class SparseTensor:
    """Feature rows at the active cells of a grid.

    Args:
        features: (V, C).
        indices: (V, 4) integers ``batch, i0, i1, i2``; the axes in the order of ``grid_shape``.
            Any row order; no cell twice (checked where the first rulebook is built).
        grid_shape: sizes of the three axes, (D, H, W) for z y x.
        batch_size: number of samples.

    Attributes:
        links: strided convolutions so far, by key; shared along the network.

    Raises:
        InvalidInputError: shapes that do not belong together.
    """

    def __init__(
        self,
        features: Tensor,
        indices: Tensor,
        grid_shape: Sequence[int],
        batch_size: int = 1,
    ) -> None:
        if features.dim() != 2 or indices.dim() != 2 or indices.shape != (len(features), 4):
            raise InvalidInputError(
                "expected features (V, C) and indices (V, 4), got "
                f"{tuple(features.shape)} and {tuple(indices.shape)}"
            )
        self.features = features
        self.sites = Sites(indices, triple(grid_shape, "grid_shape"), int(batch_size))
        self.links: dict[str, StridedLink] = {}

    @property
    def indices(self) -> Tensor:
        """(V, 4) ``batch, i0, i1, i2``."""
        return self.sites.indices

    @property
    def grid_shape(self) -> Triple:
        """Sizes of the three axes."""
        return self.sites.grid_shape

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.sites.batch_size

    def replace(self, features: Tensor, sites: Sites | None = None) -> SparseTensor:
        """Other features on the same cells, or on ``sites``; rulebooks are kept."""
        result = SparseTensor.__new__(SparseTensor)
        result.features = features
        result.sites = self.sites if sites is None else sites
        result.links = self.links
        if len(features) != len(result.sites.indices):
            raise InvalidInputError(
                f"expected {len(result.sites.indices)} feature rows, got {len(features)}"
            )
        return result

    def dense(self, axis_order: Sequence[int] = (0, 1, 2)) -> Tensor:
        """(B, C, S0, S1, S2) with zeros where no row lies, axes in ``axis_order``."""
        return sparse_torch.to_dense(
            self.features, self.indices, self.grid_shape, self.batch_size, axis_order
        )

    def __repr__(self) -> str:
        return (
            f"SparseTensor({len(self.features)} rows, {self.features.shape[1]} channels, "
            f"grid {self.grid_shape}, batch {self.batch_size})"
        )
