"""Ranges from real frames: a histogram of every quantised tensor, then the range that costs least.

Only occupied sites count, as they are all that the engine stores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s4d_core.lidar import SparseEncoder, SparseTensor

from ..errors import QuantizationError
from .layers import AddLayer, encoder_layers
from .quantize import Ranges, default_half, remove_quantizers

__all__ = ["CalibrationFrame", "Histogram", "Method", "calibrate"]

Method = Literal["mse", "percentile", "max"]
_BINS = 4096


@dataclass(frozen=True)
class CalibrationFrame:
    """Voxels of one or more samples: features (V, C), indices (V, 4)."""

    features: NDArray[Any]
    indices: NDArray[Any]
    batch_size: int = 1

    def on(self, encoder: SparseEncoder) -> tuple[Tensor, Tensor]:
        """Features (float32) and indices on the encoder's device."""
        device = next(encoder.parameters()).device
        return (
            torch.from_numpy(np.asarray(self.features, np.float32)).to(device),
            torch.from_numpy(np.asarray(self.indices, np.int32)).to(device),
        )


class Histogram:
    """Magnitudes in equal bins from 0; the width doubles when a larger value comes."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS)
        self.top = 0.0  # upper edge of the last bin
        self.largest = 0.0

    def add(self, values: Tensor) -> None:
        """Count |values|.

        Raises:
            QuantizationError: NaN or infinite values.
        """
        magnitude = values.detach().abs().double().flatten()
        if magnitude.numel() == 0:
            return
        largest = float(magnitude.max())
        if not np.isfinite(largest):
            raise QuantizationError("a calibration frame gives NaN or infinite features")
        self.largest = max(self.largest, largest)
        if self.top == 0:
            self.top = largest
        while self.top and largest > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(_BINS // 2)])
            self.top *= 2
        if self.top:
            self.counts += torch.histc(magnitude, _BINS, 0, self.top).cpu().numpy()

    def amax(self, method: Method, percentile: float) -> float:
        """The range: the largest value, the percentile of magnitudes, or the least squared error.

        "mse" tries ranges from 1/8 of the largest value up to it and weighs what clipping and
        rounding cost on the histogram.
        """
        if self.largest == 0 or method == "max":
            return self.largest
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            index = int(np.searchsorted(share, percentile / 100))
            return min((index + 1) * self.top / _BINS, self.largest)
        centres = (np.arange(_BINS) + 0.5) * (self.top / _BINS)
        candidates = self.largest * np.linspace(0.125, 1, 113)
        costs = []
        for amax in candidates:
            stored = np.minimum(np.rint(centres * (127 / amax)), 127) * (amax / 127)
            costs.append(float((self.counts * (centres - stored) ** 2).sum()))
        return float(candidates[int(np.argmin(costs))])


class _Watch(nn.Module):
    """Stands where a quantiser would, counts what passes and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.histogram = Histogram()

    def forward(self, x: Tensor) -> Tensor:
        self.histogram.add(x)
        return x


def calibrate(
    encoder: SparseEncoder,
    frames: Iterable[CalibrationFrame],
    method: Method = "mse",
    percentile: float = 99.99,
    half: Collection[str] | None = None,
) -> Ranges:
    """Run frames through a folded encoder and choose the range of every quantised tensor.

    It runs where the encoder is, CPU or CUDA.

    Args:
        method: "mse" (least squared error), "percentile" of the magnitudes, or "max".
        percentile: for that method, above 0 and up to 100.
        half: layers that stay half precision; default: the stem and the first residual block.

    Returns:
        Ranges of the inputs of all convolutions and additions. Weight ranges are the largest
        weight of each output channel.

    Raises:
        QuantizationError: no frame, NaN, an unknown method, an impossible percentile, or a layer
            that no frame reached.
    """
    if method not in ("mse", "percentile", "max"):
        raise QuantizationError(f"expected method mse, percentile or max, got {method!r}")
    if not 0 < percentile <= 100:
        raise QuantizationError(f"expected a percentile above 0 and up to 100, got {percentile}")
    layers = encoder_layers(encoder)
    ranges = Ranges(half=default_half(encoder, half))
    watches: dict[str, tuple[_Watch, ...]] = {}
    for layer in layers:
        if isinstance(layer, AddLayer):
            pair = (_Watch(), _Watch())
            layer.block.add_quantizers = pair
            watches[layer.name] = pair
        else:
            watch = _Watch()
            layer.conv.input_quantizer = watch
            watches[layer.name] = (watch,)
    count = 0
    try:
        with torch.no_grad():
            for frame in frames:
                count += 1
                features, indices = frame.on(encoder)
                shape = encoder.config.grid_shape
                encoder.encode(SparseTensor(features, indices, shape, frame.batch_size))
    finally:
        remove_quantizers(encoder)
    if count == 0:
        raise QuantizationError("expected at least one calibration frame, got none")
    chosen = {
        name: [w.histogram.amax(method, percentile) for w in group]
        for name, group in watches.items()
    }
    for layer in layers:
        if isinstance(layer, AddLayer):
            ranges.adds[layer.name] = (chosen[layer.name][0], chosen[layer.name][1])
        else:
            ranges.inputs[layer.name] = chosen[layer.name][0]
    ranges.check(encoder)
    return ranges
