"""Rulebooks on numpy arrays: which input row meets which output row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ._sparse_arrays import Triple, call, index_rows, triple

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["Rulebook", "strided_rulebook", "submanifold_rulebook"]


@dataclass(frozen=True)
class Rulebook:
    """Which input row meets which output row at which kernel offset.

    Attributes:
        table: (K, M) int32: the input row at offset ``k = (k0 * K1 + k1) * K2 + k2`` of each of
            the M output rows, or -1.
        in_rows: number of input rows.
        out_indices: (M, 4) int32. Submanifold: the input rows in their order; strided: ascending.
        out_shape: the grid of the output rows.
    """

    table: NDArray[np.int32]
    in_rows: int
    out_indices: NDArray[np.int32]
    out_shape: tuple[int, int, int]
    _inverse: list[NDArray[np.int32]] = field(default_factory=list, repr=False, compare=False)

    def pairs(self) -> NDArray[np.int64]:
        """Active pairs per kernel offset, (K,)."""
        return (self.table >= 0).sum(1)

    def inverse_table(self, threads: int = 0) -> NDArray[np.int32]:
        """(K, in_rows): the output row that reads each input row, or -1. Computed once."""
        if not self._inverse:
            self._inverse.append(call("sparse_transpose_table", self.table, self.in_rows, threads))
        return self._inverse[0]


def submanifold_rulebook(
    indices: NDArray[Any],
    grid_shape: Triple,
    batch_size: int = 1,
    kernel_size: int | Triple = 3,
    dilation: int | Triple = 1,
    threads: int = 0,
) -> Rulebook:
    """Rulebook of a submanifold convolution: output sites are the input sites.

    Args:
        indices: (V, 4) integers ``batch, i0, i1, i2``, any order.
        grid_shape: sizes of the three axes.
        kernel_size: odd; the input of offset k lies at ``site + (k - kernel // 2) * dilation``.
        threads: 0 takes ``S4D_NUM_THREADS``, else the cores this process may use.

    Raises:
        InvalidInputError: a row outside the grid, a row that appears twice, an even kernel.
    """
    rows = index_rows(indices)
    shape = triple(grid_shape, "grid_shape")
    table = call(
        "sparse_submanifold_table", rows, shape, batch_size,
        triple(kernel_size, "kernel_size"), triple(dilation, "dilation"), threads,
    )  # fmt: skip
    return Rulebook(table, len(rows), rows, shape)


def strided_rulebook(
    indices: NDArray[Any],
    grid_shape: Triple,
    batch_size: int = 1,
    kernel_size: int | Triple = 3,
    stride: int | Triple = 1,
    padding: int | Triple = 0,
    dilation: int | Triple = 1,
    threads: int = 0,
) -> Rulebook:
    """Rulebook of a strided convolution: ``input = output * stride - padding + k * dilation``.

    An output site exists where at least one active input falls into its window. Output rows are
    sorted by (batch, i0, i1, i2). The output grid is
    ``(in + 2 padding - dilation (kernel - 1) - 1) // stride + 1``.

    Raises:
        InvalidInputError: bad rows as in :func:`submanifold_rulebook`, or a kernel larger than the
            padded grid.
    """
    rows = index_rows(indices)
    out_indices, out_shape, table = call(
        "sparse_strided_rulebook", rows, triple(grid_shape, "grid_shape"), batch_size,
        triple(kernel_size, "kernel_size"), triple(stride, "stride"),
        triple(padding, "padding"), triple(dilation, "dilation"), threads,
    )  # fmt: skip
    return Rulebook(table, len(rows), out_indices, triple(out_shape, "out_shape"))
