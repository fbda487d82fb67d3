"""What each quantised layer costs: one layer in eight bits at a time, all others in float32."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from s4d_core import Sparse4DConfig

from ..errors import QuantizationError
from ..graph.session import GraphSession
from ..graph.surgery import SCOPE, extract, feature_tensors
from .calibration import Calibration
from .images import check_images
from .quantize import find_points, to_int8

__all__ = ["LayerCost", "format_costs", "sensitivity"]


@dataclass(frozen=True)
class LayerCost:
    """Error of the pyramid features when only this convolution reads eight bits.

    Attributes:
        node: name of the layer's node; the last entry, "all layers", is the whole plan.
        error: norm of the difference over the norm of the float32 features.
        signal_to_noise: the same in decibels.
    """

    node: str
    error: float
    signal_to_noise: float


def sensitivity(
    model: onnx.ModelProto,
    calibration: Calibration,
    config: Sparse4DConfig,
    images: Iterable[NDArray[Any]],
    exclude: Collection[str] = (),
    scope: Collection[str] = SCOPE,
    progress: bool = False,
) -> list[LayerCost]:
    """Costs of all quantised layers, worst first, and then of all together.

    Args:
        model: the float32 graph.
        images: a few frames (N, H, W, 3) uint8.

    Raises:
        QuantizationError: no frame, or frames that do not fit the model.
    """
    outputs = feature_tensors(model, scope)
    frames = [{"images": check_images(config, frame)} for frame in images]
    if not frames:
        raise QuantizationError("expected at least one frame for the sensitivity, got none")
    plain = GraphSession(extract(model, outputs))
    truth = [plain.run(frame) for frame in frames]
    nodes = [point.node for point in find_points(model, exclude, scope) if point.weight]

    def cost(name: str, others: Collection[str]) -> LayerCost:
        quantised = to_int8(model, calibration, [*exclude, *others], scope)
        session = GraphSession(extract(quantised, outputs))
        noise = signal = 0.0
        for frame, expected in zip(frames, truth, strict=True):
            for key, values in session.run(frame).items():
                noise += float(np.square(values - expected[key], dtype=np.float64).sum())
                signal += float(np.square(expected[key], dtype=np.float64).sum())
        error = float(np.sqrt(noise / signal)) if signal else 0.0
        return LayerCost(name, error, -20 * np.log10(error) if error else float("inf"))

    costs = [
        cost(node, [other for other in nodes if other != node])
        for node in tqdm(nodes, desc="sensitivity", unit="layer", disable=not progress)
    ]
    costs.sort(key=lambda entry: -entry.error)
    return [*costs, cost("all layers", ())]


def format_costs(costs: list[LayerCost]) -> str:
    """A table for people."""
    lines = [f"{'layer in int8':48} {'error of the features':>22} {'dB':>7}"]
    lines += [f"{c.node:48} {c.error:22.3e} {c.signal_to_noise:7.1f}" for c in costs]
    return "\n".join(lines)
