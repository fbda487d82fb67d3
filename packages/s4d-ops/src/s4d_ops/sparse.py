"""Sparse 3D convolution and voxelisation on numpy arrays, without torch.

Index rows are int32 ``(batch, i0, i1, i2)``, the three axes in the order of ``grid_shape`` (z y x
for CenterPoint). Weights are ``(out, k0, k1, k2, in)``, cross-correlation. A :class:`Rulebook`
says which input row meets which output row; build it once and hand it to every convolution that
shares the sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ._native_module import native
from .errors import InvalidInputError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = [
    "PackedWeights",
    "Rulebook",
    "Voxels",
    "add",
    "convolution",
    "scatter_dense",
    "strided_rulebook",
    "submanifold_rulebook",
    "voxelize",
    "weight_gradient",
]

Triple = Sequence[int]


def _call(function: str, *arguments: Any) -> Any:
    try:
        return getattr(native(), function)(*arguments)
    except (ValueError, TypeError) as error:
        # pybind's own TypeError lists C++ signatures after the first line.
        raise InvalidInputError(str(error).split("\n")[0]) from None


def _triple(values: int | Triple, what: str) -> tuple[int, int, int]:
    numbers = (values,) * 3 if isinstance(values, int) else tuple(int(v) for v in values)
    if len(numbers) != 3:
        raise InvalidInputError(f"expected one or three numbers for {what}, got {values}")
    return numbers[0], numbers[1], numbers[2]


def _indices(indices: NDArray[Any]) -> NDArray[np.int32]:
    rows = np.asarray(indices)
    if rows.dtype.kind not in "iu":
        raise InvalidInputError(f"expected integer indices, got {rows.dtype}")
    if rows.size and (rows.max() > 2**31 - 1 or rows.min() < -(2**31)):
        raise InvalidInputError("expected indices that fit in int32")
    return np.ascontiguousarray(rows, np.int32)


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
            self._inverse.append(_call("sparse_transpose_table", self.table, self.in_rows, threads))
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
    rows = _indices(indices)
    shape = _triple(grid_shape, "grid_shape")
    table = _call(
        "sparse_submanifold_table", rows, shape, batch_size,
        _triple(kernel_size, "kernel_size"), _triple(dilation, "dilation"), threads,
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
    rows = _indices(indices)
    out_indices, out_shape, table = _call(
        "sparse_strided_rulebook", rows, _triple(grid_shape, "grid_shape"), batch_size,
        _triple(kernel_size, "kernel_size"), _triple(stride, "stride"),
        _triple(padding, "padding"), _triple(dilation, "dilation"), threads,
    )  # fmt: skip
    return Rulebook(table, len(rows), out_indices, _triple(out_shape, "out_shape"))


class PackedWeights:
    """Weights in the order that the kernels read; pack once, use for every frame.

    Args:
        weight: (out, k0, k1, k2, in) or (out, K, in). float64 computes in float64, float32 and
            float16 in float32, int8 (codes -127..127) with exact int32 sums.
        channel_ranges: int8 only: (out,) amax of each output channel, value = code * amax / 127.
        transposed: swap the roles of the channels (the gradient of the features).
    """

    def __init__(
        self,
        weight: NDArray[Any],
        channel_ranges: NDArray[Any] | None = None,
        transposed: bool = False,
    ) -> None:
        array = np.asarray(weight)
        if array.ndim not in (3, 5):
            raise InvalidInputError(
                f"expected weights (out, k0, k1, k2, in) or (out, K, in), got {array.shape}"
            )
        self.dtype = np.dtype(np.float32) if array.dtype == np.float16 else array.dtype
        array = np.ascontiguousarray(array.reshape(array.shape[0], -1, array.shape[-1]), self.dtype)
        ranges = [] if channel_ranges is None else [float(r) for r in np.ravel(channel_ranges)]
        self.native = _call("SparseWeights", array, ranges, transposed)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return int(self.native.bytes)


def convolution(
    features: NDArray[Any],
    weights: PackedWeights | NDArray[Any],
    rulebook: Rulebook,
    bias: NDArray[Any] | None = None,
    *,
    inverse: bool = False,
    activation: str = "none",
    slope: float = 0.01,
    residual: NDArray[Any] | None = None,
    input_range: float = 0.0,
    residual_range: float = 0.0,
    add_ranges: tuple[float, float] = (0.0, 0.0),
    output_dtype: Any = None,
    output_range: float = 0.0,
    threads: int = 0,
) -> NDArray[Any]:
    """``activation(convolution + bias + residual)`` on the sites of the rulebook.

    Args:
        features: (V, in) float32, float16, float64 or int8 codes. int8 weights also take float
            features and quantise them while gathering.
        bias: (out,), added in float32 (float64 in float64).
        inverse: run the rulebook backwards: from its output rows to its input rows.
        activation: ``none``, ``relu``, ``leaky_relu`` (``slope``) or ``sigmoid``.
        residual: (M, out) added before the activation.
        input_range, residual_range, output_range: amax of int8 tensors, value = code * amax / 127.
        add_ranges: where not 0, quantise and restore the sum and the residual with these amax
            before adding them, as an int8 Add node does.
        output_dtype: default: the type of the features (float32 for int8 features).

    Returns:
        (M, out). The same bits for any number of threads.

    Raises:
        InvalidInputError: shapes or types that do not belong together.
    """
    packed = weights if isinstance(weights, PackedWeights) else PackedWeights(weights)
    features = np.ascontiguousarray(features)
    if output_dtype is None:
        output_dtype = np.float32 if features.dtype == np.int8 else features.dtype
    table = rulebook.inverse_table(threads) if inverse else rulebook.table
    output = np.empty((table.shape[1], packed.native.out_channels), output_dtype)
    if bias is not None:
        bias = np.ascontiguousarray(bias, np.float64 if packed.dtype == np.float64 else np.float32)
    if residual is not None:
        residual = np.ascontiguousarray(residual)
    _call(
        "sparse_convolution", packed.native, table, features, input_range, bias, activation,
        slope, residual, residual_range, add_ranges, output, output_range, threads,
    )  # fmt: skip
    return output


def add(
    features: NDArray[Any],
    other: NDArray[Any] | None = None,
    *,
    activation: str = "none",
    slope: float = 0.01,
    features_range: float = 0.0,
    other_range: float = 0.0,
    add_ranges: tuple[float, float] = (0.0, 0.0),
    output_dtype: Any = None,
    output_range: float = 0.0,
    threads: int = 0,
) -> NDArray[Any]:
    """``activation(features + other)`` elementwise; arguments as in :func:`convolution`.

    Without ``other`` it activates and converts between float32, float16 and int8.
    """
    features = np.ascontiguousarray(features)
    output = np.empty(features.shape, features.dtype if output_dtype is None else output_dtype)
    other = None if other is None else np.ascontiguousarray(other)
    _call(
        "sparse_add", features, features_range, other, other_range, add_ranges, activation, slope,
        output, output_range, threads,
    )  # fmt: skip
    return output


def weight_gradient(
    features: NDArray[Any],
    grad_output: NDArray[Any],
    rulebook: Rulebook,
    *,
    inverse: bool = False,
    threads: int = 0,
) -> NDArray[Any]:
    """Gradient of the weights, (out, K, in), float32 or float64.

    The gradient of the features is :func:`convolution` of ``grad_output`` with
    ``PackedWeights(weight, transposed=True)`` and ``inverse`` the other way round.
    """
    table = rulebook.inverse_table(threads) if inverse else rulebook.table
    return _call(  # type: ignore[no-any-return]
        "sparse_weight_gradient", table, np.ascontiguousarray(features),
        np.ascontiguousarray(grad_output), threads,
    )  # fmt: skip


def scatter_dense(
    features: NDArray[Any],
    indices: NDArray[Any],
    grid_shape: Triple,
    batch_size: int = 1,
    *,
    axis_order: Triple = (0, 1, 2),
    threads: int = 0,
) -> NDArray[Any]:
    """Rows to a bird's-eye tensor: (B, C * D, H, W), channel number ``c * D + d``.

    Args:
        axis_order: which grid axes become D, H and W: (0, 1, 2) for a z y x grid, (2, 0, 1) for an
            x y z grid (then H is x and W is y, as BEVFusion lays it out).
    """
    order = _triple(axis_order, "axis_order")
    dense = _call(
        "sparse_scatter_dense", np.ascontiguousarray(features), _indices(indices),
        _triple(grid_shape, "grid_shape"), batch_size, order, threads,
    )  # fmt: skip
    batch, channels, depth, height, width = dense.shape
    return dense.reshape(batch, channels * depth, height, width)  # type: ignore[no-any-return]


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
        *_call(
            "sparse_voxelize", np.ascontiguousarray(points, np.float32),
            [float(v) for v in low], [float(v) for v in high], [float(v) for v in size],
            _triple(grid_shape_xyz, "grid_shape_xyz"), max_points, max_voxels,
        )
    )  # fmt: skip
