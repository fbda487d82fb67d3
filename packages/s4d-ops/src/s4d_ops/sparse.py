"""Sparse 3D convolution and voxelisation on numpy arrays, without torch.

Index rows are int32 ``(batch, i0, i1, i2)``, the three axes in the order of ``grid_shape`` (z y x
for CenterPoint). Weights are ``(out, k0, k1, k2, in)``, cross-correlation. A :class:`Rulebook`
says which input row meets which output row; build it once and hand it to every convolution that
shares the sites.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._sparse_arrays import Triple, call, index_rows, triple
from .errors import InvalidInputError
from .sparse_rulebook import Rulebook, strided_rulebook, submanifold_rulebook
from .sparse_voxels import Voxels, voxelize

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
        self.native = call("SparseWeights", array, ranges, transposed)

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
    call(
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
    call(
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
    return call(  # type: ignore[no-any-return]
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
    order = triple(axis_order, "axis_order")
    dense = call(
        "sparse_scatter_dense", np.ascontiguousarray(features), index_rows(indices),
        triple(grid_shape, "grid_shape"), batch_size, order, threads,
    )  # fmt: skip
    batch, channels, depth, height, width = dense.shape
    return dense.reshape(batch, channels * depth, height, width)  # type: ignore[no-any-return]
