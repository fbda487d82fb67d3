"""Which layer costs how much when it alone is int8."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from s4d_core.lidar import SparseEncoder

from ..errors import QuantizationError
from .calibration import CalibrationFrame
from .layers import AddLayer, encoder_layers
from .quantize import Ranges, prepare_qat, remove_quantizers

__all__ = ["LayerSensitivity", "sensitivity"]


@dataclass(frozen=True)
class LayerSensitivity:
    """Relative error (Euclidean) of the bird's-eye map with only ``layer`` in int8."""

    layer: str
    module: str
    error: float


def sensitivity(
    encoder: SparseEncoder,
    ranges: Ranges,
    frames: Iterable[CalibrationFrame],
    progress: bool = False,
) -> list[LayerSensitivity]:
    """Quantise one layer at a time and compare with the float encoder; worst first.

    Args:
        progress: show a bar.

    Raises:
        QuantizationError: no frames, or a layer without a range.
    """
    given: Sequence[CalibrationFrame] = list(frames)
    if not given:
        raise QuantizationError("expected at least one frame, got none")
    layers = encoder_layers(encoder)
    names = frozenset(layer.name for layer in layers)
    remove_quantizers(encoder)
    wanted = [_run(encoder, frame) for frame in given]
    results = []
    for layer in tqdm(layers, desc="sensitivity", unit="layer", disable=not progress, leave=False):
        prepare_qat(encoder, replace(ranges, half=names - {layer.name}))
        try:
            errors = [
                float((_run(encoder, frame) - want).norm() / want.norm().clamp_min(1e-30))
                for frame, want in zip(given, wanted, strict=True)
            ]
        finally:
            remove_quantizers(encoder)
        module = layer.module + (".add" if isinstance(layer, AddLayer) else "")
        results.append(LayerSensitivity(layer.name, module, float(np.mean(errors))))
    return sorted(results, key=lambda r: -r.error)


@torch.no_grad()
def _run(encoder: SparseEncoder, frame: CalibrationFrame) -> Tensor:
    return encoder(*frame.on(encoder), frame.batch_size)
