"""Small networks of (Linear, ReLU) and LayerNorm in one Triton kernel each.

The anchor encoder alone is 54 such steps on 900 rows, most of them shorter than a kernel's launch.
Here a program takes 16 rows through all layers; only weights are read from memory. A product is the
sum of three TF32 products of high and low parts, which has float32's accuracy; all else is float32.
Networks wider than 128 are left alone: their weights do not fit beside the rows.
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
_WIDEST = 128
_HIGH = tl.constexpr(-8192)  # mask of the bits that TF32 keeps
_HALF = tl.constexpr(4096)  # half of the last of them: rounds to nearest


@triton.jit
def _product(h, high, low):
    """h @ (high + low), for weights split into TF32 parts."""
    top = ((h.to(tl.int32, bitcast=True) + _HALF) & _HIGH).to(tl.float32, bitcast=True)
    small = tl.dot(h - top, high, input_precision="tf32")
    small = tl.dot(top, low, small, input_precision="tf32")
    return small + tl.dot(top, high, input_precision="tf32")


@triton.jit
def _norm(h, real, width, gain, shift, EPSILON: tl.constexpr):
    """LayerNorm of the first `width` columns; `real` marks them."""
    mean = tl.sum(h, 1) / width
    difference = tl.where(real, h - mean[:, None], 0.0)
    variance = tl.sum(difference * difference, 1) / width
    return difference * tl.rsqrt(variance + EPSILON)[:, None] * gain[None, :] + shift[None, :]


@triton.jit
def _narrow(
    x,  # (rows, in_dims), any float
    out,  # (rows, out_dims), float32
    first,  # (2, networks, IN, D), high and low parts
    rest,  # (2, networks, layers - 1, D, D), input channel first
    bias,  # (networks, layers, D)
    gain,  # (networks, BLOCKS, D)
    shift,
    widths,  # (networks,) int32: real channels
    places,  # (networks,) int32: first column of the result
    rows,
    in_dims,
    out_dims,
    EPSILON: tl.constexpr,  # an argument would be float64 under Inductor
    M: tl.constexpr,
    IN: tl.constexpr,
    D: tl.constexpr,
    LINEARS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Networks of width up to D, one a column of the grid, all from the same input."""
    network = tl.program_id(1)
    networks = tl.num_programs(1)
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
            tile = first + network * IN * D + k[:, None] * D + c[None, :]
            high = tl.load(tile, mask=real, other=0.0)
            low = tl.load(tile + networks * IN * D, mask=real, other=0.0)
        else:
            inner = tl.arange(0, D)
            used = (inner < width)[:, None] & real
            tile = rest + (network * (layers - 1) + layer - 1) * D * D
            tile += inner[:, None] * D + c[None, :]
            high = tl.load(tile, mask=used, other=0.0)
            low = tl.load(tile + networks * (layers - 1) * D * D, mask=used, other=0.0)
        h = _product(h, high, low)
        h += tl.load(bias + (network * layers + layer) * D + c)[None, :]
        h = tl.maximum(h, 0.0)
        if (layer + 1) % LINEARS == 0:
            row = (network * BLOCKS + layer // LINEARS) * D + c
            h = _norm(h, real, width, tl.load(gain + row), tl.load(shift + row), EPSILON)
    tl.store(out + r[:, None] * out_dims + place + c[None, :], h, mask=there & real)


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


def _parts(weight: Tensor) -> Tensor:
    """High and low TF32 parts of a weight, in front."""
    high = ((weight.view(torch.int32) + _HALF.value) & _HIGH.value).view(torch.float32)
    return torch.stack([high, weight - high]).contiguous()


class _Networks(nn.Module):
    """Networks of one shape and different widths, all on the same input, side by side."""

    def __init__(self, networks: list[_Layers], first: list[Tensor]) -> None:
        super().__init__()
        widths = [x.linears[0].out_features for x in networks]
        channels = _padded(max(widths))
        self.channels, self.total, self.count = channels, sum(widths), len(widths)
        self.linears, self.blocks = networks[0].per_block, len(networks[0].norms)
        self.epsilon = networks[0].norms[0].eps
        self.in_dims = first[0].shape[0]
        self.first_rows = _padded(self.in_dims)
        none = first[0].new_zeros(0, 0)
        rest = [[x.weight.t() for x in n.linears[1:]] or [none] for n in networks]
        square = (channels, channels)
        values = {
            "first": _parts(_stack(first, self.first_rows, channels)),
            "rest": _parts(torch.stack([_stack(x, *square) for x in rest])),
            "bias": torch.stack([_stack([x.bias for x in n.linears], channels) for n in networks]),
            "gain": torch.stack([_stack([x.weight for x in n.norms], channels) for n in networks]),
            "shift": torch.stack([_stack([x.bias for x in n.norms], channels) for n in networks]),
            "widths": torch.tensor(widths, dtype=torch.int32, device=first[0].device),
            "places": torch.tensor(
                [sum(widths[:i]) for i in range(len(widths))],
                dtype=torch.int32,
                device=first[0].device,
            ),
        }
        for name, value in values.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dims), any float type, to (..., sum of widths) float32."""
        flat = x.reshape(-1, self.in_dims).contiguous()
        rows = flat.shape[0]
        out = torch.empty((rows, self.total), dtype=torch.float32, device=x.device)
        _narrow[(triton.cdiv(rows, _ROWS), self.count)](
            *(flat, out, self.first, self.rest, self.bias, self.gain, self.shift),
            *(self.widths, self.places, rows, self.in_dims, self.total),
            EPSILON=self.epsilon,
            M=_ROWS,
            IN=self.first_rows,
            D=self.channels,
            LINEARS=self.linears,
            BLOCKS=self.blocks,
            num_warps=4,
        )
        return out.reshape(*x.shape[:-1], self.total)


class FusedMLP(_Networks):
    """A `mlp_blocks` network of width up to 128 in one kernel; the result is float32."""

    def __init__(self, layers: _Layers) -> None:
        super().__init__([layers], [layers.linears[0].weight.t()])


class FusedAnchorEncoder(nn.Module):
    """The anchor encoder with its four branches in one kernel."""

    def __init__(self, branches: list[_Layers], output: nn.Module) -> None:
        super().__init__()
        first = []
        for layers, part in zip(branches, (POSITION, SIZE, YAW, VELOCITY), strict=True):
            weight = layers.linears[0].weight
            placed = weight.new_zeros(BOX_DIMS, weight.shape[0])  # the whole box is the input
            placed[part] = weight.t()
            first.append(placed)
        self.branches = _Networks(branches, first)
        self.output = output

    def forward(self, box: Tensor) -> Tensor:
        """(B, A, 11) to (B, A, embed_dims) float32."""
        result: Tensor = self.output(self.branches(box))
        return result


def _fits(layers: _Layers) -> bool:
    """Whether the kernel takes a network of these layers."""
    return max(layers.linears[0].out_features, layers.linears[0].in_features) <= _WIDEST


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
        branches = [x for x in found if x is not None and _fits(x)]
        alike = len({(len(x.linears), len(x.norms)) for x in branches}) == 1
        if module.mode != "cat" or len(branches) != 4 or not alike:
            return None
        output: nn.Module = nn.Identity() if module.output is None else module.output
        return FusedAnchorEncoder(branches, _fused(output) or output)
    layers = _read(module)
    return FusedMLP(layers) if layers is not None and _fits(layers) else None
