"""Magnitudes of a tensor over many frames, and the range for eight bits that costs least.

Ranges are symmetric: a value x is stored as round(x / amax * 127), clipped to -127..127.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import QuantizationError

__all__ = ["METHODS", "Histogram", "Method"]

Method = Literal["mse", "entropy", "percentile", "max"]
METHODS: tuple[Method, ...] = get_args(Method)
LEVELS = 127  # of the magnitude, beside 0
BINS = 4096


class Histogram:
    """Magnitudes in equal bins from 0; the width doubles when a larger value comes."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS)
        self.top = 0.0  # upper edge of the last bin
        self.largest = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Count |values|.

        Raises:
            QuantizationError: NaN or infinite values.
        """
        magnitude = np.abs(values, dtype=np.float32).ravel()
        if magnitude.size == 0:
            return
        largest = float(magnitude.max())
        if not np.isfinite(largest):
            raise QuantizationError("a calibration frame gives NaN or infinite values")
        self.largest = max(self.largest, largest)
        if largest == 0 and self.top == 0:
            return
        if self.top == 0:
            self.top = largest
        while largest > self.top:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
            self.top *= 2
        # Truncation is four times as fast as numpy's histogram; zeros fall into the first bin.
        index = (magnitude * np.float32(BINS / self.top)).astype(np.int32)
        np.minimum(index, BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=BINS)

    def amax(self, method: Method = "mse", percentile: float = 99.99) -> float:
        """The range.

        Args:
            method: "max" takes the largest value; "percentile" the magnitude that this share of
                the values stays below; "mse" the range of least squared error; "entropy" the
                range whose eight-bit distribution differs least from the true one
                (Kullback-Leibler, Migacz, "8-bit inference with TensorRT", GTC 2017).
            percentile: 0..100, of "percentile".
        """
        if self.largest == 0 or method == "max":
            return self.largest
        width = self.top / BINS
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            index = int(np.searchsorted(share, percentile / 100))
            return min((index + 1) * width, self.largest)
        if method == "entropy":
            return min(self._entropy_bins() * width, self.largest)
        return self._least_squares()

    def _least_squares(self) -> float:
        centres = (np.arange(BINS) + 0.5) * (self.top / BINS)
        candidates = self.largest * np.linspace(0.05, 1, 191)
        costs = []
        for amax in candidates:
            stored = np.minimum(np.rint(centres * (LEVELS / amax)), LEVELS) * (amax / LEVELS)
            costs.append(float((self.counts * (centres - stored) ** 2).sum()))
        return float(candidates[int(np.argmin(costs))])

    def _entropy_bins(self) -> int:
        """How many bins to keep. What lies beyond is counted in the last bin kept."""
        counts = self.counts.copy()
        counts[0] = 0  # zero is exact in every range, and after a ReLU it would drown the rest
        used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 1
        best, best_bins = np.inf, used
        levels = LEVELS + 1
        for bins in range(levels, used + 1, max(1, (used - levels) // 256)):
            true = counts[:bins].copy()
            true[-1] += counts[bins:].sum()
            group = np.arange(bins) * levels // bins
            filled = counts[:bins] > 0
            mass = np.bincount(group, counts[:bins], levels)
            size = np.bincount(group, filled, levels)
            stored = np.where(filled, (mass / np.maximum(size, 1))[group], 0.0)
            cost = _divergence(true, stored)
            if cost < best:
                best, best_bins = cost, bins
        return best_bins


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence of q from p, both normalised; empty places of q are smoothed."""
    if not p.any() or not q.any():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    q = np.where((q == 0) & (p > 0), 1e-9, q)
    used = p > 0
    return float((p[used] * np.log(p[used] / q[used])).sum())
