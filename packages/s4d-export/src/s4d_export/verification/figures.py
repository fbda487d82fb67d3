"""Errors of one tensor over many frames, and the limits that they are held to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TOLERANCES", "Errors", "Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """Limits of a passing comparison.

    ``boxes`` and ``scores``: largest absolute error over matched detections (metres, radians,
    metres per second mixed; scores 0..1). ``quantile``: the share of box rows that must keep the
    limit, and ``worst``: what the others must keep (single rows jump where a point crosses an
    image border, and the yaw of a box without a clear heading turns far for little).
    ``unmatched``: share of rows that may find no partner. ``radius``: how far apart two rows may
    be and still be taken for one instance. ``signal``: largest relative error of the carried
    features, as a norm. ``exact``: must ids and labels be equal up to ties, and every score within
    its limit (else 99.9 % of them, and as many ids and labels as rows)?
    """

    boxes: float
    scores: float
    quantile: float
    worst: float
    unmatched: float
    radius: float
    signal: float
    exact: bool


# For frames that start from the same state: the error of one step, before anything amplifies it.
TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-3, 0.999, 1e-2, 0.0, 1e-2, 1e-3, True),
    "fp16": Tolerance(0.1, 1e-2, 0.98, np.inf, 0.02, 0.5, 2e-2, False),
    "int8": Tolerance(0.5, 0.1, 0.9, np.inf, 0.1, 1.0, 0.1, False),
}


@dataclass
class Errors:
    """All absolute errors of one tensor, and the sums for a cosine."""

    values: list[NDArray[np.float64]] = field(default_factory=list)
    dot: float = 0.0
    norm_a: float = 0.0
    norm_b: float = 0.0
    squares: float = 0.0

    def add(self, a: NDArray[Any], b: NDArray[Any], error: NDArray[np.float64]) -> None:
        a64, b64 = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        self.values.append(np.asarray(error, np.float64).ravel())
        self.dot += float(a64 @ b64)
        self.norm_a += float(a64 @ a64)
        self.norm_b += float(b64 @ b64)
        self.squares += float(np.square(self.values[-1]).sum())

    def summary(self) -> dict[str, float]:
        errors = np.concatenate(self.values) if self.values else np.zeros(0)
        if not errors.size:
            return {"max": 0.0, "p99.9": 0.0, "mean": 0.0, "relative": 0.0, "cosine": 1.0}
        norm = float(np.sqrt(self.norm_a) * np.sqrt(self.norm_b))
        return {
            "max": float(errors.max()),
            "p99.9": float(np.quantile(errors, 0.999)),
            "mean": float(errors.mean()),
            "relative": float(np.sqrt(self.squares / self.norm_a)) if self.norm_a else 0.0,
            "cosine": self.dot / norm if norm else 1.0,
        }
