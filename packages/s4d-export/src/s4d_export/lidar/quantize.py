"""Symmetric int8 in torch: fake quantisers for calibration checks, sensitivity and QAT.

A value is stored as ``clip(rint(x * 127 / amax), -127, 127)``; ties go to even. Features have one
range per tensor, weights one per output channel.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from s4d_core.lidar import SparseEncoder

from ..errors import QuantizationError
from .layers import AddLayer, ConvLayer, Layer, encoder_layers, first_block

__all__ = ["FakeQuantizer", "Ranges", "prepare_qat", "ranges_of", "remove_quantizers"]


@dataclass
class Ranges:
    """Ranges (amax) by layer name.

    Attributes:
        inputs: input of each convolution.
        adds: the two operands of each addition: the convolution's side, the block input's side.
        weights: per output channel; taken from the weights (their maximum) where absent.
        half: layers (convolutions and additions) that stay half precision.
    """

    inputs: dict[str, float] = field(default_factory=dict)
    adds: dict[str, tuple[float, float]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    half: frozenset[str] = frozenset()

    def check(self, encoder: SparseEncoder) -> None:
        """Every int8 layer has finite positive ranges, and no unknown layer is named.

        Raises:
            QuantizationError: naming the layer.
        """
        layers = encoder_layers(encoder)
        _check_names(self.half, layers)
        for layer in layers:
            if layer.name in self.half:
                continue
            found = (
                self.adds.get(layer.name, ())
                if isinstance(layer, AddLayer)
                else (self.inputs.get(layer.name, math.nan),)
            )
            if not found or not all(math.isfinite(r) and r > 0 for r in found):
                raise QuantizationError(
                    f"layer {layer.name!r} ({layer.module}) has no usable range; calibrate with "
                    "frames that reach it"
                )

    def weight_ranges(self, layer: ConvLayer) -> list[float]:
        """Range of each output channel."""
        if layer.name in self.weights:
            return self.weights[layer.name]
        return [float(r) for r in layer.conv.weight.detach().abs().amax((1, 2, 3, 4))]


class _Round(torch.autograd.Function):
    """Straight-through: the gradient passes where the value was not clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, amax: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() <= amax)
        return torch.clamp(torch.round(x * (127.0 / amax)), -127, 127) * (amax / 127.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None


class FakeQuantizer(nn.Module):
    """Rounds to the int8 grid of a fixed range and back.

    Args:
        amax: (1,), or (out, 1, 1, 1, 1) for weights; a channel of zeros may have 0.
    """

    amax: Tensor

    def __init__(self, amax: Tensor) -> None:
        super().__init__()
        self.register_buffer("amax", torch.where(amax > 0, amax, torch.ones_like(amax)))

    def forward(self, x: Tensor) -> Tensor:
        """The rounded values; gradients pass straight through inside the range."""
        return _Round.apply(x, self.amax.to(x.dtype))  # type: ignore[no-any-return]


def prepare_qat(encoder: SparseEncoder, ranges: Ranges) -> SparseEncoder:
    """Attach fake quantisers to a folded encoder, in place: it then computes what int8 will.

    Train it further (the ranges stay fixed), then hand ``ranges_of(encoder)`` to the export.

    Raises:
        QuantizationError: a layer has no usable range.
    """
    ranges.check(encoder)
    device = next(encoder.parameters()).device

    def quantizer(amax: list[float]) -> FakeQuantizer:
        return FakeQuantizer(torch.tensor(amax, device=device))

    for layer in encoder_layers(encoder):
        if layer.name in ranges.half:
            continue
        if isinstance(layer, AddLayer):
            left, right = (quantizer([r]) for r in ranges.adds[layer.name])
            layer.block.add_quantizers = (left, right)
            continue
        layer.conv.input_quantizer = quantizer([ranges.inputs[layer.name]])
        channels = torch.tensor(ranges.weight_ranges(layer), device=device)
        layer.conv.weight_quantizer = FakeQuantizer(channels[:, None, None, None, None])
    return encoder


def remove_quantizers(encoder: SparseEncoder) -> SparseEncoder:
    """The reverse of :func:`prepare_qat`, in place."""
    for layer in encoder_layers(encoder):
        if isinstance(layer, AddLayer):
            layer.block.add_quantizers = None
        else:
            layer.conv.input_quantizer = None
            layer.conv.weight_quantizer = None
    return encoder


def ranges_of(encoder: SparseEncoder) -> Ranges:
    """The ranges that a prepared encoder carries, for the export after training."""
    ranges = Ranges()
    half = set()
    for layer in encoder_layers(encoder):
        if isinstance(layer, AddLayer):
            pair = layer.block.add_quantizers
            if pair is None:
                half.add(layer.name)
            else:
                left, right = (float(q.amax) for q in pair if isinstance(q, FakeQuantizer))
                ranges.adds[layer.name] = (left, right)
            continue
        quantizer, weights = layer.conv.input_quantizer, layer.conv.weight_quantizer
        if not isinstance(quantizer, FakeQuantizer) or not isinstance(weights, FakeQuantizer):
            half.add(layer.name)
            continue
        ranges.inputs[layer.name] = float(quantizer.amax)
        ranges.weights[layer.name] = [float(r) for r in weights.amax.flatten()]
    ranges.half = frozenset(half)
    return ranges


def default_half(encoder: SparseEncoder, names: Collection[str] | None) -> frozenset[str]:
    """The layers kept half: the given ones, else the stem and the first block.

    Raises:
        QuantizationError: no layer has a given name.
    """
    if names is None:
        return first_block(encoder)
    _check_names(names, encoder_layers(encoder))
    return frozenset(names)


def _check_names(names: Collection[str], layers: list[Layer]) -> None:
    known = [layer.name for layer in layers]
    if unknown := sorted(set(names) - set(known)):
        ends = [[n for n in known if n.startswith(kind)][-1] for kind in ("conv", "add")]
        raise QuantizationError(
            f"no layer {unknown[0]!r}; the layers are conv0 to {ends[0]} and add0 to {ends[1]}"
        )
