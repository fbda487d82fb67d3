"""Ranges of the tensors that become eight bits, measured on frames and kept as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from s4d_core import Sparse4DConfig

from ..errors import QuantizationError
from ..graph.session import GraphSession
from ..graph.surgery import extract, with_outputs
from .histogram import METHODS, Histogram, Method
from .images import check_images

__all__ = ["Calibration", "calibrate", "fingerprint", "load_calibration"]

CALIBRATION_FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """What calibration found. The artifact carries it as ``calibration.json``.

    Attributes:
        ranges: largest magnitude that eight bits stand for, per tensor of the float32 graph.
        method, percentile: how the range was chosen from the histogram.
        frames: how many were looked at.
        source: where they came from, in words.
        graph: ``fingerprint`` of the part of the graph that was observed.
    """

    ranges: Mapping[str, float]
    method: Method
    percentile: float
    frames: int
    source: str
    graph: str

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps({"format": CALIBRATION_FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read the result of ``to_json``.

        Raises:
            QuantizationError: not JSON, an entry is absent, or a range is not a finite number.
        """
        try:
            entries: dict[str, Any] = json.loads(text)
            number = entries.pop("format")
            result = cls(**entries)
            good = all(np.isfinite(value) and value >= 0 for value in result.ranges.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise QuantizationError(f"not a calibration ({error}); calibrate again") from None
        if number != CALIBRATION_FORMAT or not good or result.method not in METHODS:
            raise QuantizationError(
                f"expected a calibration of format {CALIBRATION_FORMAT} with finite ranges, got "
                f"format {number}; calibrate again"
            )
        return result


def load_calibration(path: str) -> Calibration:
    """A calibration from a JSON file, or from the artifact that carries one.

    Raises:
        QuantizationError: neither.
        ArtifactError: a damaged artifact.
    """
    if path.endswith(".s4d"):
        from s4d_runtime.artifact import read_artifact

        with read_artifact(path) as artifact:
            if "calibration.json" not in artifact.names():
                raise QuantizationError(f"the artifact {path!r} carries no calibration")
            return Calibration.from_json(artifact.read("calibration.json").decode())
    try:
        return Calibration.from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise QuantizationError(f"cannot read the calibration {path!r}: {error}") from None


def calibrate(
    model: onnx.ModelProto,
    tensors: Iterable[str],
    config: Sparse4DConfig,
    images: Iterable[NDArray[Any]],
    method: Method = "mse",
    percentile: float = 99.99,
    source: str = "",
) -> Calibration:
    """Run frames through the float32 graph and choose the range of every tensor.

    Args:
        model: the float32 graph.
        tensors: names of what will be quantised; they may depend on the images only.
        images: frames (N, H, W, 3) uint8 at network size.

    Raises:
        QuantizationError: no frame, frames that do not fit the model, NaN, or an unknown method.
    """
    if method not in METHODS:
        raise QuantizationError(f"expected method {', '.join(METHODS)}, got {method!r}")
    if not 0 < percentile <= 100:
        raise QuantizationError(f"expected a percentile above 0 and up to 100, got {percentile}")
    names = sorted(set(tensors))
    part = extract(model, names)
    strange = [value.name for value in part.graph.input if value.name != "images"]
    if strange:
        raise QuantizationError(
            f"tensors that depend on {', '.join(strange)} cannot be calibrated on images alone"
        )
    session = GraphSession(with_outputs(part, names))
    histograms = {name: Histogram() for name in names}
    count = 0
    for frame in images:
        count += 1
        for name, values in session.run({"images": check_images(config, frame)}).items():
            histograms[name].add(values)
    if not count:
        raise QuantizationError("expected at least one calibration frame, got none")
    ranges = {name: histograms[name].amax(method, percentile) for name in names}
    return Calibration(ranges, method, percentile, count, source, fingerprint(model, names))


def fingerprint(model: onnx.ModelProto, tensors: Iterable[str]) -> str:
    """A hash of everything that the values of these tensors depend on."""
    return hashlib.sha256(
        extract(model, sorted(set(tensors))).graph.SerializeToString(deterministic=True)
    ).hexdigest()
