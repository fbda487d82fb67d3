"""Modulated deformable convolution (Zhu et al., 2018, "Deformable ConvNets v2").

Every output pixel moves its kernel taps by predicted offsets and scales what it reads by a
predicted mask:

    y(p) = sum_k w_k * m_k(p) * x(p * stride + p_k + d_k(p))

with bilinear reading and zeros outside. Written with torch operations that the ONNX exporter
knows (GridSample and MatMul), for any device and float dtype.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import grid_sample

from ..aggregation_op import uses_native_op
from .column_gradients import Gradients, indexed_gradients, native_gradients

__all__ = ["DeformConv2d", "deform_conv2d", "read_columns", "tap_positions"]


def deform_conv2d(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int = 1, padding: int = 1
) -> Tensor:
    """Deformable convolution with given offsets and masks.

    Args:
        x: (B, C, H, W).
        offset: (B, 2 * K, H', W') pixels of `x`; channels 2k and 2k + 1 move tap k in y and x,
            taps counted row by row. Its size is the size of the output.
        mask: (B, K, H', W') factor of each tap.
        weight: (O, C, kh, kw) with kh * kw = K.

    Returns:
        (B, O, H', W').

    Taps outside the image read 0 and fade in over one pixel (-1 < y < H, -1 < x < W). Where a
    position is a whole number of pixels, the gradient of its offset is that towards larger
    coordinates. For backward the columns of the matrix product are kept, K times the size of
    `x`; recompute the block (`checkpointing`) where that is too much.
    """
    batch, channels = x.shape[:2]
    out_height, out_width = offset.shape[-2:]
    taps = weight.shape[-2] * weight.shape[-1]
    positions = tap_positions(offset, (weight.shape[-2], weight.shape[-1]), stride, padding)
    arguments = (x, *positions, mask.flatten(1))
    if torch.is_grad_enabled() and any(value.requires_grad for value in arguments):
        columns = _Columns.apply(*arguments)
    else:
        columns = read_columns(*arguments)
    columns = columns.reshape(batch, channels * taps, out_height * out_width)
    out = torch.matmul(weight.flatten(1), columns)
    return out.reshape(batch, weight.shape[0], out_height, out_width)


def tap_positions(
    offset: Tensor, kernel: tuple[int, int], stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Pixels (y, x) that taps read, each (B, K * H' * W') taps first, in the type of `offset`."""
    kernel_height, kernel_width = kernel
    batch, _, out_height, out_width = offset.shape

    def centres(count: int, size: int) -> Tensor:
        """(count, size) positions of taps at outputs along one axis, without offsets."""
        tap = torch.arange(count, device=offset.device, dtype=offset.dtype)
        out = torch.arange(size, device=offset.device, dtype=offset.dtype)
        return tap[:, None] + out * stride - padding

    row = centres(kernel_height, out_height).repeat_interleave(kernel_width, 0)[:, :, None]
    column = centres(kernel_width, out_width).repeat(kernel_height, 1)[:, None]
    moves = offset.reshape(batch, -1, 2, out_height, out_width)
    return (moves[:, :, 0] + row).flatten(1), (moves[:, :, 1] + column).flatten(1)


def read_columns(x: Tensor, y: Tensor, x_pos: Tensor, mask: Tensor) -> Tensor:
    """x (B, C, H, W) read at pixels (y, x_pos) and scaled by mask, all (B, P): (B, C, P).

    Computed in the type of the positions; the result has that of `x`.
    """
    height, width = x.shape[-2:]
    # Pixel centres to grid_sample's [-1, 1] between outer pixel edges.
    grid = torch.stack(((2 * x_pos + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    read = grid_sample(
        x.to(grid.dtype),
        grid[:, :, None],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    columns = read.squeeze(-1) * mask[:, None]
    # Not a conversion to the same type: with that, torch.compile of torch 2.11 gives all arguments
    # of the autograd function below a gradient of zero.
    return columns if columns.dtype == x.dtype else columns.to(x.dtype)


class _Columns(torch.autograd.Function):
    """`read_columns` with a gradient of its own, see `column_gradients`. Keeps its arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, x_pos: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, x_pos, mask)
        return read_columns(x, y, x_pos, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, y, x_pos, mask = ctx.saved_tensors  # once: reading recomputes a checkpointed block
        gradients = native_gradients if uses_native_op(x.device) else indexed_gradients
        return gradients(x, y, x_pos, mask, grad)


class DeformConv2d(nn.Module):
    """3x3 deformable convolution that predicts its own offsets and masks; no bias.

    Weight names are those of the published checkpoints: `weight`, `conv_offset.weight`,
    `conv_offset.bias`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.conv_offset = nn.Conv2d(in_channels, 27, 3, stride, 1)
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, ceil(H / stride), ceil(W / stride))."""
        # Positions of far pixels need more digits than half precision has.
        device = x.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            moves = self.conv_offset(x.to(self.conv_offset.weight.dtype))
        offset, mask = moves[:, :18], moves[:, 18:].sigmoid()
        return deform_conv2d(x, offset, mask, self.weight, self.stride)

    def init_weights(self) -> None:
        """He initialisation; offsets start at 0 and masks at one half."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]
