"""How far two tensors are apart: one table, with limits that make it a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import S4DError

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Figures of ``a`` against the reference ``b``.

    Attributes:
        difference: absolute difference: max, sum, std, mean.
        a, b: absolute maximum, minimum, std, mean of each.
        above: how many differences are above 75, 50 and 25 % of the largest one.
        equal: share of equal elements, 0 to 1.
        cosine: of the two tensors as vectors (1 if both are zero).
        relative: ``|a - b| / |b|``, Euclidean.
    """

    shape: tuple[int, ...]
    difference: tuple[float, float, float, float]
    a: tuple[float, float, float, float]
    b: tuple[float, float, float, float]
    above: tuple[int, int, int]
    equal: float
    cosine: float
    relative: float

    def table(self) -> str:
        """The figures as text."""
        lines = [
            f"shape        {' x '.join(map(str, self.shape))}",
            "difference   max {:.6g}  sum {:.6g}  std {:.6g}  mean {:.6g}".format(*self.difference),
            "first        absmax {:.6g}  min {:.6g}  std {:.6g}  mean {:.6g}".format(*self.a),
            "second       absmax {:.6g}  min {:.6g}  std {:.6g}  mean {:.6g}".format(*self.b),
            "differences above 75 / 50 / 25 % of the largest: {} / {} / {}".format(*self.above),
            f"equal {self.equal:.4%}  unequal {1 - self.equal:.4%}",
            f"cosine {self.cosine:.6%}  relative {self.relative:.6g}",
        ]
        return "\n".join(lines)

    def failures(
        self,
        max_abs: float | None = None,
        relative: float | None = None,
        cosine: float | None = None,
    ) -> list[str]:
        """One sentence for each limit that is not met; NaN meets none."""
        found = []
        if max_abs is not None and not self.difference[0] <= max_abs:
            found.append(f"largest difference {self.difference[0]:.6g} is above {max_abs:g}")
        if relative is not None and not self.relative <= relative:
            found.append(f"relative difference {self.relative:.6g} is above {relative:g}")
        if cosine is not None and not self.cosine >= cosine:
            found.append(f"cosine {self.cosine:.6g} is below {cosine:g}")
        return found


def compare(a: NDArray[Any], b: NDArray[Any]) -> Comparison:
    """Compare in float64; ``b`` is the reference.

    Raises:
        S4DError: shapes differ, or the tensors are empty.
    """
    if a.shape != b.shape or a.size == 0:
        raise S4DError(f"expected two tensors of one shape, not empty, got {a.shape} and {b.shape}")
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    gap = np.abs(x - y)
    largest = float(gap.max())
    above = tuple(int((gap > share * largest).sum()) for share in (0.75, 0.5, 0.25))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    length = float(np.linalg.norm(y))
    distance = float(np.linalg.norm(x - y))
    return Comparison(
        a.shape,
        (largest, float(gap.sum()), float(gap.std()), float(gap.mean())),
        _stats(x),
        _stats(y),
        (above[0], above[1], above[2]),
        float((x == y).mean()),
        float(x @ y) / norms if norms else float(not x.any() and not y.any()),
        distance / length if length else (0.0 if distance == 0 else float("inf")),
    )


def _stats(x: NDArray[np.float64]) -> tuple[float, float, float, float]:
    return float(np.abs(x).max()), float(x.min()), float(x.std()), float(x.mean())
