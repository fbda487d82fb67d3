"""Columns of a deformable convolution in one Triton kernel, with channels last.

`deform_conv2d` reads with grid_sample, channel by channel, and each of a pixel's channels lies in
another line of memory. Here a program reads whole rows of channels at 16 taps, and computes
positions, shares and masks itself.
"""

from __future__ import annotations

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore
from torch import Tensor

__all__ = ["fused_columns"]

_ROWS = 16  # (pixel, tap) pairs of a program
_CHANNELS = 256  # of a program at most


@triton.jit
def _columns(
    x,  # (B, H, W, C)
    moves,  # (B, 27, OH, OW), with the strides given
    out,  # (B, OH, OW, 9, C)
    count,  # B * OH * OW * 9
    H,
    W,
    C,
    OH,
    OW,
    batch_step,
    channel_step,
    row_step,
    column_step,
    STRIDE: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0) * M + tl.arange(0, M)
    there = pair < count
    tap = pair % 9
    pixel = pair // 9
    column = pixel % OW
    row = pixel // OW % OH
    image = (pixel // OW // OH).to(tl.int64)
    at = moves + image * batch_step + row * row_step + column * column_step
    down = tl.load(at + 2 * tap * channel_step, mask=there, other=0.0).to(tl.float32)
    right = tl.load(at + (2 * tap + 1) * channel_step, mask=there, other=0.0).to(tl.float32)
    logit = tl.load(at + (18 + tap) * channel_step, mask=there, other=0.0).to(tl.float32)
    mask = tl.sigmoid(logit)
    y = down + (row * STRIDE + tap // 3 - 1).to(tl.float32)
    z = right + (column * STRIDE + tap % 3 - 1).to(tl.float32)
    top = tl.floor(y)
    left = tl.floor(z)
    share_y = y - top
    share_z = z - left
    # Far outside, where a whole number would not fit, there is nothing to read either.
    iy = tl.minimum(tl.maximum(top, -2.0), H).to(tl.int32)
    iz = tl.minimum(tl.maximum(left, -2.0), W).to(tl.int32)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = (c < C)[None, :]
    sum = tl.zeros([M, BLOCK], tl.float32)
    for corner in tl.static_range(4):
        at_y = iy + corner // 2
        at_z = iz + corner % 2
        share = tl.where(corner // 2 == 1, share_y, 1.0 - share_y)
        share *= tl.where(corner % 2 == 1, share_z, 1.0 - share_z)
        inside = there & (at_y >= 0) & (at_y < H) & (at_z >= 0) & (at_z < W)
        place = ((image * H + at_y) * W + at_z) * C
        value = tl.load(x + place[:, None] + c[None, :], mask=inside[:, None] & real, other=0.0)
        sum += tl.where(inside, share * mask, 0.0)[:, None] * value.to(tl.float32)
    to = pair.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(out + to, sum, mask=there[:, None] & real)


def fused_columns(x: Tensor, moves: Tensor, stride: int) -> Tensor:
    """See `deformable.moved_columns`; `x` is made channels last."""
    images, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    rows, columns = moves.shape[-2:]
    out = torch.empty((images, rows, columns, 9 * channels), dtype=x.dtype, device=x.device)
    count = images * rows * columns * 9
    block = min(triton.next_power_of_2(channels), _CHANNELS)
    _columns[(triton.cdiv(count, _ROWS), triton.cdiv(channels, block))](
        *(x, moves, out, count, height, width, channels, rows, columns),
        *moves.stride(),
        STRIDE=stride,
        M=_ROWS,
        BLOCK=block,
        num_warps=4,
    )
    return out
