"""How far one tensor is from another, in one number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["relative_error"]


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Norm of the difference over the norm of what is expected; infinite where not finite.

    Two correct programs may order the rows of a table of instances differently where scores are
    near. So tensors of one sample are compared a second time with their values in order of size,
    column by column for tables (rows, columns) and (1, rows, columns), and the smaller figure
    counts.
    """
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    a, b = got.astype(np.float64), expected.astype(np.float64)
    norm = float(np.linalg.norm(b))
    if norm == 0:
        return float(np.abs(a).max(initial=0.0))
    direct = float(np.linalg.norm(a - b)) / norm
    if direct == 0 or not (a.ndim == 2 or a.shape[0] == 1):
        return direct
    columns = a.shape[-1] if a.ndim in (2, 3) and a.shape[-2] > 1 else 1
    a, b = a.reshape(-1, columns), b.reshape(-1, columns)
    in_order = np.sort(a, axis=0) - np.sort(b, axis=0)
    return min(direct, float(np.linalg.norm(in_order)) / norm)
