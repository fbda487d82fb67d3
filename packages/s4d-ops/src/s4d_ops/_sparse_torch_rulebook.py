"""Rulebooks on torch tensors. Public names are those of :mod:`s4d_ops.sparse_torch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._sparse_operators import call
from .errors import InvalidInputError

__all__ = [
    "Rulebook",
    "Triple",
    "index_rows",
    "output_shape",
    "strided_rulebook",
    "submanifold_rulebook",
]

Triple = Sequence[int]


def index_rows(indices: Tensor) -> Tensor:
    """Index rows as int32.

    Raises:
        InvalidInputError: no integers, or another shape than (V, 4).
    """
    if indices.dim() != 2 or indices.shape[1] != 4 or indices.is_floating_point():
        raise InvalidInputError(
            f"expected integer indices (V, 4), got {tuple(indices.shape)} {indices.dtype}"
        )
    return indices.to(torch.int32)


@dataclass
class Rulebook:
    """Which input row meets which output row.

    Attributes:
        table: (K, M) int32, input row of each output row at each kernel offset, or -1.
        in_rows: number of input rows.
        out_indices: (M, 4) int32, the output rows' sites.
        out_shape: their grid.
    """

    table: Tensor
    in_rows: int
    out_indices: Tensor
    out_shape: tuple[int, int, int]
    _inverse: Tensor | None = None

    def inverse_table(self) -> Tensor:
        """(K, in_rows) int32: the output row that reads each input row, or -1. Computed once."""
        if self._inverse is None:
            self._inverse = call("sparse_transpose_table", self.table, self.in_rows)
        return self._inverse


def submanifold_rulebook(
    indices: Tensor, grid_shape: Triple, batch_size: int, kernel_size: Triple, dilation: Triple
) -> Rulebook:
    """See :func:`s4d_ops.sparse.submanifold_rulebook`; sizes are three numbers each."""
    rows = index_rows(indices)
    shape = (int(grid_shape[0]), int(grid_shape[1]), int(grid_shape[2]))
    table = call(
        "sparse_submanifold_table", rows, shape, batch_size, list(kernel_size), list(dilation)
    )
    return Rulebook(table, len(rows), rows, shape)


def output_shape(
    grid_shape: Triple, kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> tuple[int, int, int]:
    """Grid after a strided convolution, per axis
    ``(in + 2 padding - dilation (kernel - 1) - 1) // stride + 1``."""
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(grid_shape, kernel_size, stride, padding, dilation, strict=True)
    ]
    return sizes[0], sizes[1], sizes[2]


def strided_rulebook(
    indices: Tensor,
    grid_shape: Triple,
    batch_size: int,
    kernel_size: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
) -> Rulebook:
    """See :func:`s4d_ops.sparse.strided_rulebook`; sizes are three numbers each."""
    rows = index_rows(indices)
    out_indices, table = call(
        "sparse_strided_rulebook", rows, list(grid_shape), batch_size, list(kernel_size),
        list(stride), list(padding), list(dilation),
    )  # fmt: skip
    shape = output_shape(grid_shape, kernel_size, stride, padding, dilation)
    return Rulebook(table, len(rows), out_indices, shape)
