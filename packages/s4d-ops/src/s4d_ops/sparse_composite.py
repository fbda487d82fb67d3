"""Sparse operators written with torch's own: for CUDA tensors of a type that has no kernel.

float64 (gradient checks, references) and bfloat16 maps. Slow, and of any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["convolution", "gather_dense", "scatter_dense", "weight_gradient"]


def _inputs(features: Tensor, rows: Tensor) -> Tensor:
    """(M, C): the input row of each output row at one kernel offset, zeros where there is none."""
    if len(features) == 0:
        return features.new_zeros(len(rows), features.shape[1])
    there = rows >= 0
    return torch.where(there[:, None], features[rows.clamp_min(0).long()], 0)


def convolution(
    features: Tensor, weight: Tensor, table: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor:
    """As the operator ``sparse_convolution``."""
    columns = weight.shape[2] if transposed else weight.shape[0]
    out = features.new_zeros(table.shape[1], columns)
    for k, rows in enumerate(table):
        matrix = weight[:, k] if transposed else weight[:, k].T
        out += _inputs(features, rows) @ matrix
    return out if bias is None else out + bias


def weight_gradient(features: Tensor, grad_output: Tensor, table: Tensor) -> Tensor:
    """As the operator ``sparse_weight_gradient``."""
    return torch.stack([grad_output.T @ _inputs(features, rows) for rows in table], 1)


def scatter_dense(
    features: Tensor, indices: Tensor, shape: Sequence[int], batch: int, order: Sequence[int]
) -> Tensor:
    """As the operator ``sparse_scatter_dense``; the rows must be checked before."""
    dense = features.new_zeros(batch, *shape, features.shape[1])
    b, x, y, z = indices.long().unbind(1)
    dense[b, x, y, z] = features
    return dense.permute(0, 4, *(axis + 1 for axis in order)).contiguous()


def gather_dense(
    dense: Tensor, indices: Tensor, shape: Sequence[int], batch: int, order: Sequence[int]
) -> Tensor:
    """As the operator ``sparse_gather_dense``; the rows must be checked before."""
    places = [0, 0, 0]
    for place, axis in enumerate(order):
        places[axis] = place + 2
    grid = dense.permute(0, *places, 1)
    b, x, y, z = indices.long().unbind(1)
    return grid[b, x, y, z]
