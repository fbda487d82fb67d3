"""Small networks of (Linear, ReLU) and LayerNorm in one Triton kernel each.

The anchor encoder alone is 54 such steps on 900 rows, every one shorter than a kernel's launch.
Here a program takes 16 rows through all layers; only weights are read from memory. Products are
sums of three TF32 products, which have float32's accuracy, and so is everything else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore
from torch import Tensor, nn

from ..anchor_encoder import AnchorEncoder
from ..box import BOX_DIMS, POSITION, SIZE, VELOCITY, YAW

__all__ = ["FusedAnchorEncoder", "FusedMLP", "fuse_small_networks"]

_ROWS = 16  # of a program
_TILE = 128  # widest layer of one weight tile; wider layers are two of them


@triton.jit
def _norm(h, real, width, gain, shift, epsilon):
    """LayerNorm of the first `width` columns; `real` marks them."""
    mean = tl.sum(h, 1) / width
    difference = tl.where(real, h - mean[:, None], 0.0)
    variance = tl.sum(difference * difference, 1) / width
    return difference * tl.rsqrt(variance + epsilon)[:, None] * gain[None, :] + shift[None, :]


@triton.jit
def _narrow(
    x,  # (rows, in_dims), any float
    out,  # (rows, out_dims), float32
    first,  # (networks, IN, D)
    rest,  # (networks, layers - 1, D, D), input channel first
    bias,  # (networks, layers, D)
    gain,  # (networks, BLOCKS, D)
    shift,
    widths,  # (networks,) int32: real channels
    places,  # (networks,) int32: first column of the result
    rows,
    in_dims,
    out_dims,
    epsilon,
    M: tl.constexpr,
    IN: tl.constexpr,
    D: tl.constexpr,
    LINEARS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Networks of width up to D, one a column of the grid, all from the same input."""
    network = tl.program_id(1)
    width = tl.load(widths + network)
    place = tl.load(places + network)
    r = tl.program_id(0) * M + tl.arange(0, M)
    c = tl.arange(0, D)
    k = tl.arange(0, IN)
    real = (c < width)[None, :]
    there = (r < rows)[:, None]
    at = x + r[:, None] * in_dims + k[None, :]
    h = tl.load(at, mask=there & (k < in_dims)[None, :], other=0.0).to(tl.float32)
    layers: tl.constexpr = LINEARS * BLOCKS
    for layer in tl.static_range(layers):
        if layer == 0:
            w = tl.load(first + network * IN * D + k[:, None] * D + c[None, :])
        else:
            tile = rest + (network * (layers - 1) + layer - 1) * D * D
            inner = tl.arange(0, D)
            w = tl.load(
                tile + inner[:, None] * D + c[None, :],
                mask=(inner < width)[:, None] & real,
                other=0.0,
            )
        h = tl.dot(h, w, input_precision="tf32x3")
        h += tl.load(bias + (network * layers + layer) * D + c)[None, :]
        h = tl.maximum(h, 0.0)
        if (layer + 1) % LINEARS == 0:
            row = (network * BLOCKS + layer // LINEARS) * D + c
            h = _norm(h, real, width, tl.load(gain + row), tl.load(shift + row), epsilon)
    tl.store(out + r[:, None] * out_dims + place + c[None, :], h, mask=there & real)


@triton.jit
def _wide(
    x,
    out,
    first,  # (IN, 2 D)
    rest,  # (layers - 1, 2 D, 2 D)
    bias,  # (layers, 2 D)
    gain,  # (BLOCKS, 2 D)
    shift,
    rows,
    in_dims,
    epsilon,
    M: tl.constexpr,
    IN: tl.constexpr,  # padded input, or 2 D
    D: tl.constexpr,
    LINEARS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One network of width 2 D, its activations in two halves."""
    r = tl.program_id(0) * M + tl.arange(0, M)
    c = tl.arange(0, D)
    there = (r < rows)[:, None]
    full: tl.constexpr = 2 * D
    layers: tl.constexpr = LINEARS * BLOCKS
    if full == IN:
        at = x + r[:, None] * in_dims + c[None, :]
        a = tl.load(at, mask=there, other=0.0).to(tl.float32)
        b = tl.load(at + D, mask=there, other=0.0).to(tl.float32)
    for layer in tl.static_range(layers):
        if layer == 0 and full != IN:
            k = tl.arange(0, IN)
            at = x + r[:, None] * in_dims + k[None, :]
            h = tl.load(at, mask=there & (k < in_dims)[None, :], other=0.0).to(tl.float32)
            tile = first + k[:, None] * full + c[None, :]
            left = tl.dot(h, tl.load(tile), input_precision="tf32x3")
            right = tl.dot(h, tl.load(tile + D), input_precision="tf32x3")
        else:
            if layer == 0:
                tile = first + c[:, None] * full + c[None, :]
            else:
                tile = rest + (layer - 1) * full * full + c[:, None] * full + c[None, :]
            left = tl.dot(a, tl.load(tile), input_precision="tf32x3")
            left = tl.dot(b, tl.load(tile + D * full), left, input_precision="tf32x3")
            right = tl.dot(a, tl.load(tile + D), input_precision="tf32x3")
            right = tl.dot(b, tl.load(tile + D * full + D), right, input_precision="tf32x3")
        a = tl.maximum(left + tl.load(bias + layer * full + c)[None, :], 0.0)
        b = tl.maximum(right + tl.load(bias + layer * full + D + c)[None, :], 0.0)
        if (layer + 1) % LINEARS == 0:
            mean = ((tl.sum(a, 1) + tl.sum(b, 1)) / full)[:, None]
            a -= mean
            b -= mean
            variance = (tl.sum(a * a, 1) + tl.sum(b * b, 1)) / full
            scale = tl.rsqrt(variance + epsilon)[:, None]
            row = (layer // LINEARS) * full + c
            a = a * scale * tl.load(gain + row)[None, :] + tl.load(shift + row)[None, :]
            b = b * scale * tl.load(gain + row + D)[None, :] + tl.load(shift + row + D)[None, :]
    to = out + r[:, None] * full + c[None, :]
    tl.store(to, a, mask=there)
    tl.store(to + D, b, mask=there)


class _Layers(NamedTuple):
    """What a `mlp_blocks` network is made of."""

    linears: list[nn.Linear]
    norms: list[nn.LayerNorm]

    @property
    def per_block(self) -> int:
        return len(self.linears) // len(self.norms)


def _read(network: nn.Module) -> _Layers | None:
    """The layers of blocks of [n times (Linear, ReLU), LayerNorm], all of one width; else None."""
    if not isinstance(network, nn.Sequential):
        return None
    parts = list(network)
    linears = [p for p in parts if isinstance(p, nn.Linear)]
    norms = [p for p in parts if isinstance(p, nn.LayerNorm)]
    if not norms or len(linears) % len(norms):
        return None
    pattern = [nn.Linear, nn.ReLU] * (len(linears) // len(norms)) + [nn.LayerNorm]
    width = linears[-1].out_features
    same = all(x.out_features == width for x in linears) and all(
        x.in_features == width for x in linears[1:]
    )
    affine = all(x.weight is not None and x.bias is not None for x in norms)
    biased = all(x.bias is not None for x in linears)
    full = linears[0].weight.dtype == torch.float32
    if [type(p) for p in parts] != pattern * len(norms) or not (
        same and affine and biased and full
    ):
        return None
    return _Layers(linears, norms)


def _padded(size: int) -> int:
    """A size that matrix tiles can have."""
    return max(16, triton.next_power_of_2(size))


def _stack(values: list[Tensor], *shape: int) -> Tensor:
    """Tensors in the corner of zeros of one shape."""
    result = values[0].new_zeros((len(values), *shape))
    for place, value in zip(result, values, strict=True):
        place[tuple(slice(n) for n in value.shape)] = value
    return result.contiguous()


class FusedMLP(nn.Module):
    """A `mlp_blocks` network of width up to 128, or 256, in one kernel; result in float32."""

    def __init__(self, layers: _Layers) -> None:
        super().__init__()
        width = layers.linears[0].out_features
        self.wide = width > _TILE
        self.in_dims, self.width = layers.linears[0].in_features, width
        self.linears, self.blocks = layers.per_block, len(layers.norms)
        self.epsilon = layers.norms[0].eps
        self.channels = width if self.wide else _padded(width)
        self.first_rows = _padded(self.in_dims)
        size = (self.channels, self.channels)
        weights = [x.weight.t() for x in layers.linears]
        self.register_buffer("first", _stack(weights[:1], self.first_rows, self.channels))
        self.register_buffer("rest", _stack(weights[1:] or [weights[0][:0]], *size))
        self.register_buffer("bias", _stack([x.bias for x in layers.linears], self.channels))
        self.register_buffer("gain", _stack([x.weight for x in layers.norms], self.channels))
        self.register_buffer("shift", _stack([x.bias for x in layers.norms], self.channels))
        device = weights[0].device
        self.register_buffer("widths", torch.tensor([width], dtype=torch.int32, device=device))
        self.register_buffer("places", torch.zeros(1, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dims), any float type, to (..., width) float32."""
        flat = x.reshape(-1, self.in_dims).contiguous()
        rows = flat.shape[0]
        out = torch.empty((rows, self.width), dtype=torch.float32, device=x.device)
        grid = (triton.cdiv(rows, _ROWS), 1)
        values = (self.first, self.rest, self.bias, self.gain, self.shift)
        if self.wide:
            _wide[grid](
                *(flat, out, *values, rows, self.in_dims, self.epsilon),
                M=_ROWS,
                IN=self.first_rows,
                D=_TILE,
                LINEARS=self.linears,
                BLOCKS=self.blocks,
                num_warps=8,
            )
        else:
            _narrow[grid](
                *(flat, out, *values, self.widths, self.places),
                *(rows, self.in_dims, self.width, self.epsilon),
                M=_ROWS,
                IN=self.first_rows,
                D=self.channels,
                LINEARS=self.linears,
                BLOCKS=self.blocks,
                num_warps=4,
            )
        return out.reshape(*x.shape[:-1], self.width)


class FusedAnchorEncoder(nn.Module):
    """The anchor encoder's four branches in one kernel, its output layer in another."""

    def __init__(self, encoder: AnchorEncoder, branches: list[_Layers], output: nn.Module) -> None:
        super().__init__()
        columns = (POSITION, SIZE, YAW, VELOCITY)
        widths = [x.linears[0].out_features for x in branches]
        channels = _padded(max(widths))
        count = len(branches[0].linears)
        first = []
        for layers, part in zip(branches, columns, strict=True):
            weight = layers.linears[0].weight
            placed = weight.new_zeros(BOX_DIMS, weight.shape[0])  # the whole box is the input
            placed[part] = weight.t()
            first.append(placed)
        rest = [_stack([x.weight.t() for x in b.linears[1:]], channels, channels) for b in branches]
        bias = [_stack([x.bias for x in b.linears], channels) for b in branches]
        gain = [_stack([x.weight for x in b.norms], channels) for b in branches]
        shift = [_stack([x.bias for x in b.norms], channels) for b in branches]
        self.register_buffer("first", _stack(first, _padded(BOX_DIMS), channels))
        for name, values in (("rest", rest), ("bias", bias), ("gain", gain), ("shift", shift)):
            self.register_buffer(name, torch.stack(values).contiguous())
        places = [sum(widths[:i]) for i in range(len(widths))]
        for name, numbers in (("widths", widths), ("places", places)):
            value = torch.tensor(numbers, dtype=torch.int32, device=first[0].device)
            self.register_buffer(name, value)
        self.channels, self.total, self.branches = channels, sum(widths), len(widths)
        self.blocks, self.linears = len(branches[0].norms), branches[0].per_block
        assert count == self.blocks * self.linears
        self.epsilon = branches[0].norms[0].eps
        self.output = output

    def forward(self, box: Tensor) -> Tensor:
        """(B, A, 11) to (B, A, embed_dims) float32."""
        flat = box.reshape(-1, BOX_DIMS).contiguous()
        rows = flat.shape[0]
        joined = torch.empty((rows, self.total), dtype=torch.float32, device=box.device)
        grid = (triton.cdiv(rows, _ROWS), self.branches)
        _narrow[grid](
            *(flat, joined, self.first, self.rest, self.bias, self.gain, self.shift),
            *(self.widths, self.places, rows, BOX_DIMS, self.total, self.epsilon),
            M=_ROWS,
            IN=_padded(BOX_DIMS),
            D=self.channels,
            LINEARS=self.linears,
            BLOCKS=self.blocks,
            num_warps=4,
        )
        return self.output(joined).reshape(*box.shape[:-1], self.total)


def _fits(layers: _Layers | None) -> bool:
    """Whether a kernel exists for a network of these layers."""
    if layers is None:
        return False
    width, in_dims = layers.linears[0].out_features, layers.linears[0].in_features
    if width == 2 * _TILE:
        return in_dims <= _TILE or in_dims == width
    return width <= _TILE and in_dims <= _TILE


def fuse_small_networks(model: nn.Module) -> int:
    """Replace what fits one of the kernels, in place. Returns how many replacements were made."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            replacement = _fused(child)
            if replacement is not None:
                setattr(parent, name, replacement)
                count += 1
    return count


def _fused(module: nn.Module) -> nn.Module | None:
    if isinstance(module, AnchorEncoder):
        found = [_read(x) for x in (module.position, module.size, module.yaw, module.velocity)]
        branches = [x for x in found if x is not None]
        alike = len({(len(x.linears), len(x.norms)) for x in branches}) == 1
        narrow = all(x.linears[0].out_features <= _TILE for x in branches)
        if module.mode != "cat" or len(branches) != 4 or not (alike and narrow):
            return None
        output: nn.Module = nn.Identity() if module.output is None else module.output
        return FusedAnchorEncoder(module, branches, _fused(output) or output)
    layers = _read(module)
    return FusedMLP(layers) if layers is not None and _fits(layers) else None
