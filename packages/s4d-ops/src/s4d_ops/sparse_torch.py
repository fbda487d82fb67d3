"""Sparse 3D convolution and voxelisation on torch tensors, CPU and CUDA, with gradients.

The modules of ``s4d_core.lidar`` are built on these functions. Geometry, index rows and weights as
in :mod:`s4d_ops.sparse`. Forward and backward give the same bits in every run, on the CPU for any
number of threads. On CUDA everything runs on the current stream; rulebooks, dense maps and voxels
wait for it, since their size or their checks come from the data, and convolutions do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import sparse_composite
from ._sparse_operators import call, check_device, has_kernel
from ._sparse_torch_rulebook import (
    Rulebook,
    Triple,
    index_rows,
    output_shape,
    strided_rulebook,
    submanifold_rulebook,
)
from .errors import InvalidInputError

__all__ = [
    "Rulebook",
    "VoxelTensors",
    "convolution",
    "convolution_int8",
    "output_shape",
    "strided_rulebook",
    "submanifold_rulebook",
    "to_dense",
    "voxelize",
]


def _convolve(
    features: Tensor, weight: Tensor, table: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor:
    if not has_kernel(features):
        return sparse_composite.convolution(features, weight, table, bias, transposed)
    return call(  # type: ignore[no-any-return]
        "sparse_convolution", features, weight, table, bias, transposed
    )


class _Convolution(torch.autograd.Function):
    """Computes in the type of ``features``; the gradient of the weight has the weight's own."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rulebook: Rulebook,
        inverse: bool,
    ) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.rulebook, ctx.inverse = rulebook, inverse
        table = rulebook.inverse_table() if inverse else rulebook.table
        bias = None if bias is None else bias.to(features.dtype)
        return _convolve(features, weight.to(features.dtype), table, bias, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        book, inverse = ctx.rulebook, ctx.inverse
        table = book.inverse_table() if inverse else book.table
        grad_features = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            back = book.table if inverse else book.inverse_table()
            grad_features = _convolve(grad, weight.to(grad.dtype), back, None, True)
        if ctx.needs_input_grad[1]:
            # From half features the kernel gives float32, which a sum over so many rows needs.
            gradient = (
                call("sparse_weight_gradient", features, grad, table)
                if has_kernel(features)
                else sparse_composite.weight_gradient(features, grad, table)
            )
            grad_weight = gradient.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0, dtype=weight.dtype)
        return grad_features, grad_weight, grad_bias, None, None


def _check_rows(features: Tensor, rulebook: Rulebook, inverse: bool) -> None:
    """The CPU looks at every entry of the table; on CUDA that would wait for the device."""
    rows = rulebook.table.shape[1] if inverse else rulebook.in_rows
    if features.dim() != 2 or len(features) != rows:
        raise InvalidInputError(
            f"expected {rows} feature rows, as the rulebook entries say, got "
            f"{tuple(features.shape)}"
        )


def convolution(
    features: Tensor,
    weight: Tensor,
    rulebook: Rulebook,
    bias: Tensor | None = None,
    inverse: bool = False,
) -> Tensor:
    """Sparse convolution; differentiable once by features, weight and bias.

    Args:
        features: (V, in) float32, float64, float16 or bfloat16. On the CPU, half types are
            computed in float32 and returned in their own type. On CUDA, float16 runs on tensor
            cores with float32 sums and weights rounded to half, bfloat16 is computed in float32,
            and float64 uses torch's own operators.
        weight: (out, k0, k1, k2, in). Weight and bias may have another float type than the
            features; their gradients have their own.
        inverse: from the rulebook's output rows to its input rows.

    Returns:
        (M, out), M the output rows of the rulebook (its input rows with ``inverse``).

    Raises:
        InvalidInputError: shapes or types that do not belong together.
        MissingLibraryError: CUDA tensors, and the CUDA library is not there.
    """
    _check_rows(features, rulebook, inverse)
    compute = features.dtype
    if compute == torch.bfloat16 or (compute == torch.float16 and features.device.type == "cpu"):
        compute = torch.float32
    flat = weight.flatten(1, 3) if weight.dim() == 5 else weight
    out = _Convolution.apply(features.to(compute), flat, bias, rulebook, inverse)
    return out.to(features.dtype)  # type: ignore[no-any-return]


def convolution_int8(
    features: Tensor,
    weight: Tensor,
    scale: Tensor,
    rulebook: Rulebook,
    bias: Tensor | None = None,
    inverse: bool = False,
) -> Tensor:
    """``sum * scale + bias`` over int8 codes, for inference; the sums are exact.

    Args:
        features: (V, in) int8 codes; value = code * range / 127.
        weight: (out, k0, k1, k2, in) int8 codes from -127 to 127.
        scale: (out,) float32, range of the features / 127 * range of the channel / 127.
        bias: (out,) float32.

    Returns:
        (M, out) float32.

    Raises:
        InvalidInputError, MissingLibraryError: as :func:`convolution`.
    """
    _check_rows(features, rulebook, inverse)
    table = rulebook.inverse_table() if inverse else rulebook.table
    flat = weight.flatten(1, 3) if weight.dim() == 5 else weight
    return call(  # type: ignore[no-any-return]
        "sparse_convolution_int8", features, flat, scale, table, bias
    )


class _ToDense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, indices: Tensor, shape: Triple, batch: int, order: Triple
    ) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.layout = (list(shape), batch, list(order))
        if not has_kernel(features):
            return sparse_composite.scatter_dense(features, indices, *ctx.layout)
        return call("sparse_scatter_dense", features, indices, *ctx.layout)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        if has_kernel(grad):
            rows = call("sparse_gather_dense", grad, indices, *ctx.layout)
        else:
            rows = sparse_composite.gather_dense(grad, indices, *ctx.layout)
        return rows, None, None, None, None


def to_dense(
    features: Tensor,
    indices: Tensor,
    grid_shape: Triple,
    batch_size: int = 1,
    axis_order: Triple = (0, 1, 2),
) -> Tensor:
    """(V, C) rows to (B, C, S0, S1, S2), the grid's axes in ``axis_order``; differentiable."""
    return _ToDense.apply(  # type: ignore[no-any-return]
        features, index_rows(indices), grid_shape, batch_size, axis_order
    )


@dataclass(frozen=True)
class VoxelTensors:
    """As :class:`s4d_ops.sparse.Voxels`, in tensors."""

    cells: Tensor
    features: Tensor
    kept: Tensor
    total: Tensor
    refused_voxels: int
    refused_points: int
    outside_points: int


def voxelize(
    points: Tensor,
    low: Sequence[float],
    high: Sequence[float],
    size: Sequence[float],
    grid_shape_xyz: Triple,
    max_points: int = 10,
    max_voxels: int = 0,
) -> VoxelTensors:
    """See :func:`s4d_ops.sparse.voxelize`; ``points`` (P, C >= 3), computed in float32."""
    rules = torch.tensor([list(low), list(high), list(size)], dtype=torch.float32)
    check_device([points.device])
    try:
        cells, features, kept, total, lost = torch.ops.s4d.sparse_voxelize(
            points.to(torch.float32), rules, list(grid_shape_xyz), max_points, max_voxels
        )
    except (RuntimeError, ValueError) as error:
        raise InvalidInputError(str(error).split("\n")[0]) from None
    return VoxelTensors(cells, features, kept, total, *lost.tolist())
