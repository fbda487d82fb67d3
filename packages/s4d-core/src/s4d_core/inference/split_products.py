"""Convolutions and matrix products in float32's accuracy on half-precision tensor cores.

A float32 value is the sum of a half high part and a half low part of 2^-11 its size; together they
hold 22 of its 24 bits. A product is the sum of three: high x high, low x high and high x low. The
low part is stored times 2^11, so that small values keep their bits, and the weights that it meets
are stored times 2^-11. Weights are scaled by a power of two per output channel, which makes them
fit half's range whatever they are. Inputs beyond +-65504 become NaN.

Tensor cores cut off the bits that do not fit where they add to a sum. Over thousands of steps that
cost more accuracy than the parts themselves (1.5e-5 at 4 608 steps on an H200). So they only form
sums of one step, and the long sum is made by ordinary additions, which round to nearest.
"""

from __future__ import annotations

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore
from torch import Tensor

__all__ = ["can_split", "split_convolution", "split_linear", "split_parts", "split_product"]

PACKED = 4  # channels of images: a step takes a row of the kernel, 8 pixels of 4 channels
_PROCESSORS = 132  # of the device the tiles were chosen on
_Tiles = tuple[int, int, int, int, int]  # rows, columns and depth of a program, warps, stages


@triton.jit
def _split_product(
    x,  # (images, H, W, C) float32
    parts,  # (3, O, K) half: high, high / 2^11, low
    finish,  # (2, O) float32: bias, scale
    residual,  # as out
    out,  # (images, OH, OW, O) float32
    pixels,  # images * OH * OW
    H,
    W,
    C,
    OH,
    OW,
    O,  # noqa: E741
    K,  # SIZE * SIZE * C; packed: SIZE * 32
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    PACKED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    # Programs that follow each other share rows of the image or weights, 8 by a few.
    across = tl.cdiv(O, BN)
    width = 8 * across
    first = tl.program_id(0) // width * 8
    group = min(tl.cdiv(pixels, BM) - first, 8)
    within = tl.program_id(0) % width
    m = (first + within % group) * BM + tl.arange(0, BM)
    n = within // group * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    there, used = m < pixels, (n < O)[None, :]
    column, line, image = m % OW * STRIDE - PAD, m // OW % OH * STRIDE - PAD, m // OW // OH
    weight = parts + n[None, :] * K + k[:, None]
    plane = O * K
    sum = tl.zeros([BM, BN], tl.float32)
    for step in range(K // BK):
        if PACKED:
            y = line + step
            z = column[:, None] + (k // 4)[None, :]
            inside = (there & (y >= 0) & (y < H))[:, None] & (z >= 0) & (z < W)
            start = ((image * H + y) * W + column).to(tl.int64) * 4
            value = tl.load(x + start[:, None] + k[None, :], mask=inside, other=0.0)
        else:
            tap = step * BK // C
            y = line + tap // SIZE
            z = column + tap % SIZE
            inside = there & (y >= 0) & (y < H) & (z >= 0) & (z < W)
            start = ((image * H + y) * W + z).to(tl.int64) * C + (step * BK - tap * C)
            value = tl.load(x + start[:, None] + k[None, :], mask=inside[:, None], other=0.0)
        high = value.to(tl.float16)
        low = ((value - high.to(tl.float32)) * 2048.0).to(tl.float16)
        of = weight + step * BK
        top = tl.load(of, mask=used, other=0.0)
        part = tl.dot(low, tl.load(of + plane, mask=used, other=0.0))
        part = tl.dot(high, tl.load(of + 2 * plane, mask=used, other=0.0), part)
        sum += tl.dot(high, top, part)
    scale = tl.load(finish + O + n, mask=n < O, other=0.0)
    sum = sum * scale[None, :] + tl.load(finish + n, mask=n < O, other=0.0)[None, :]
    to = m.to(tl.int64)[:, None] * O + n[None, :]
    whole = there[:, None] & used
    if RESIDUAL:
        sum += tl.load(residual + to, mask=whole, other=0.0)
    if RELU:
        sum = tl.maximum(sum, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + to, sum, mask=whole)


def can_split(channels: int, size: int) -> bool:
    """Whether the kernel takes an input of so many channels and a (square) kernel of this size."""
    return channels % 32 == 0 or (channels == PACKED and size <= 8)


def split_parts(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the kernel reads of a weight (O, C) or (O, C, h, w) and its bias: parts, finish."""
    rows = weight.detach().double()
    if rows.dim() == 4:
        rows = rows.permute(0, 2, 3, 1)
        if rows.shape[-1] == PACKED:  # every row of the kernel: 8 pixels
            rows = torch.nn.functional.pad(rows, (0, 0, 0, 8 - rows.shape[2]))
    rows = rows.reshape(rows.shape[0], -1)
    largest = rows.abs().amax(dim=1).clamp_min(2.0**-100)
    exponent = 13 - largest.log2().floor()
    scaled = rows * exponent.exp2()[:, None]
    high = scaled.half()
    low = (scaled - high.double()).half()
    parts = torch.stack([high, (high.double() / 2048).half(), low]).contiguous()
    start = torch.zeros_like(largest) if bias is None else bias.detach().double()
    return parts, torch.stack([start, (-exponent).exp2()]).float().contiguous()


def _tiles(pixels: int, channels: int, depth: int) -> _Tiles:
    """Tiles of 128 x 128, or of 64 x 64 where fewer of them are wasted; depth: of an input row.

    On an H200 a processor has one of the large or two of the small ones at a time, and takes 5 to
    3 as long for them.
    """
    large = triton.cdiv(triton.cdiv(pixels, 128) * triton.cdiv(channels, 128), _PROCESSORS)
    small = triton.cdiv(triton.cdiv(pixels, 64) * triton.cdiv(channels, 64), 2 * _PROCESSORS)
    if depth == PACKED:
        return 128, 64, 32, 8, 3
    if channels > 64 and 5 * large <= 3 * small:
        return 128, 128, 32, 8, 3
    return (64, 64, 32, 4, 3) if depth % 64 else (64, 64, 64, 4, 3)


def split_product(
    x: Tensor,
    parts: Tensor,
    finish: Tensor,
    residual: Tensor | None,
    out: Tensor,
    sizes: tuple[int, int, int, int, int, int],
    window: tuple[int, int, int] = (1, 1, 0),
    relu: bool = False,
    tiles: _Tiles | None = None,
) -> None:
    """Launch the kernel.

    Args:
        x: images' rows, pixel by pixel, channels last, contiguous.
        parts, finish: see `split_parts`.
        residual: as out, or None.
        out: written.
        sizes: rows of out, then height, width and channels of an image, height and width of out.
        window: size, stride and padding of the kernel.
        tiles: None: chosen by shape.
    """
    channels, depth = finish.shape[1], sizes[3]
    packed = depth == PACKED
    rows, columns, deep, warps, stages = tiles or _tiles(sizes[0], channels, depth)
    size, stride, padding = window
    _split_product[(triton.cdiv(sizes[0], rows) * triton.cdiv(channels, columns),)](
        *(x, parts, finish, out if residual is None else residual, out, *sizes),
        *(channels, parts.shape[2]),
        SIZE=size,
        STRIDE=stride,
        PAD=padding,
        PACKED=packed,
        RESIDUAL=residual is not None,
        RELU=relu,
        BM=rows,
        BN=columns,
        BK=deep,
        num_warps=warps,
        num_stages=stages,
    )


def split_linear(x: Tensor, parts: Tensor, finish: Tensor, relu: bool = False) -> Tensor:
    """A float32 linear layer of (..., C), with ReLU where asked: (..., O).

    Args:
        x: any float type; C a multiple of 32.
        parts, finish: see `split_parts`.
    """
    depth, channels = x.shape[-1], finish.shape[1]
    flat = x.float().reshape(-1, depth).contiguous()
    rows = flat.shape[0]
    out = torch.empty((rows, channels), dtype=torch.float32, device=x.device)
    sizes = (rows, 1, rows, depth, 1, rows)
    split_product(flat, parts, finish, None, out, sizes, relu=relu)
    return out.reshape(*x.shape[:-1], channels)


def split_convolution(
    x: Tensor,
    parts: Tensor,
    finish: Tensor,
    residual: Tensor | None,
    relu: bool,
    size: int,
    stride: int,
    padding: int,
) -> Tensor:
    """`relu(conv2d(x) + bias + residual)` of float32 maps (K, C, H, W); channels are made last.

    Args:
        x: C as `can_split` has it.
        parts, finish: see `split_parts`.
        residual: of the output's shape, or None.
        relu: False leaves the last step out.
        size, stride, padding: of the kernel, along both axes.
    """
    last = torch.channels_last
    x = x.contiguous(memory_format=last)
    images, depth, height, width = x.shape
    rows, columns = ((n + 2 * padding - size) // stride + 1 for n in (height, width))
    shape = (images, finish.shape[1], rows, columns)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=last)
    residual = None if residual is None else residual.contiguous(memory_format=last)
    sizes = (images * rows * columns, height, width, depth, rows, columns)
    split_product(x, parts, finish, residual, out, sizes, (size, stride, padding), relu)
    return out
