"""Steps on feature maps with channels last that torch does far below the memory's speed.

Each reads and writes every value once. Other layouts take torch's own steps.
"""

from __future__ import annotations

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

__all__ = ["add_upsampled", "max_pool_3x3"]

_BLOCK = 1024


@triton.jit
def _add_upsampled(fine, coarse, out, count, HEIGHT, WIDTH, CHANNELS, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    channel = i % CHANNELS
    pixel = i // CHANNELS
    x = pixel % WIDTH
    y = pixel // WIDTH % HEIGHT
    image = pixel // WIDTH // HEIGHT
    above = (image * (HEIGHT // 2) + y // 2) * (WIDTH // 2) + x // 2
    a = tl.load(fine + i, mask=there, other=0.0).to(tl.float32)
    b = tl.load(coarse + above * CHANNELS + channel, mask=there, other=0.0).to(tl.float32)
    tl.store(out + i, a + b, mask=there)


@triton.jit
def _max_pool(x, out, count, HEIGHT, WIDTH, CHANNELS, ROWS, COLUMNS, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    channel = i % CHANNELS
    pixel = i // CHANNELS
    column = pixel % COLUMNS
    row = pixel // COLUMNS % ROWS
    image = pixel // COLUMNS // ROWS
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    for step in tl.static_range(9):
        at_y = 2 * row + step // 3 - 1
        at_x = 2 * column + step % 3 - 1
        inside = there & (at_y >= 0) & (at_y < HEIGHT) & (at_x >= 0) & (at_x < WIDTH)
        place = ((image * HEIGHT + at_y) * WIDTH + at_x) * CHANNELS + channel
        value = tl.load(x + place, mask=inside, other=float("-inf")).to(tl.float32)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + i, best, mask=there)


def _channels_last(*maps: Tensor) -> bool:
    return all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


def add_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    """`fine` (K, C, H, W) plus `coarse`, its nearest neighbours taken at `fine`'s size."""
    height, width = fine.shape[-2:]
    doubled = (2 * coarse.shape[-2], 2 * coarse.shape[-1])
    if doubled != (height, width) or not _channels_last(fine, coarse):
        return fine + interpolate(coarse, size=(height, width), mode="nearest")
    out = torch.empty_like(fine)
    count = fine.numel()
    _add_upsampled[(triton.cdiv(count, _BLOCK),)](
        fine, coarse, out, count, height, width, fine.shape[1], BLOCK=_BLOCK
    )
    return out


def max_pool_3x3(x: Tensor) -> Tensor:
    """Maxima over 3 x 3 at stride 2 with padding 1: (K, C, H, W) to half the size, rounded up."""
    if not _channels_last(x):
        return max_pool2d(x, 3, 2, 1)
    images, channels, height, width = x.shape
    size = (images, channels, (height + 1) // 2, (width + 1) // 2)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    count = out.numel()
    _max_pool[(triton.cdiv(count, _BLOCK),)](
        *(x, out, count, height, width, channels, *size[2:]), BLOCK=_BLOCK
    )
    return out
