"""Rigid transforms in float64, many at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["inverse", "pose_matrices", "rotation_matrices"]

Array = npt.NDArray[Any]


def rotation_matrices(quaternions: Array) -> npt.NDArray[np.float64]:
    """(n, 3, 3) of quaternions (n, 4) w x y z, normalised first."""
    q = np.asarray(quaternions, dtype=np.float64).reshape(-1, 4)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def pose_matrices(quaternions: Array, translations: Array) -> npt.NDArray[np.float64]:
    """(n, 4, 4) from quaternions (n, 4) w x y z and translations (n, 3)."""
    rotation = rotation_matrices(quaternions)
    matrix = np.zeros((len(rotation), 4, 4))
    matrix[:, :3, :3] = rotation
    matrix[:, :3, 3] = np.asarray(translations).reshape(-1, 3)
    matrix[:, 3, 3] = 1.0
    return matrix


def inverse(matrices: Array) -> npt.NDArray[np.float64]:
    """Inverses of rigid transforms (..., 4, 4): transposed rotation, no general solve."""
    result = np.zeros_like(matrices)
    turn = np.swapaxes(matrices[..., :3, :3], -1, -2)
    result[..., :3, :3] = turn
    result[..., :3, 3] = -np.einsum("...ij,...j->...i", turn, matrices[..., :3, 3])
    result[..., 3, 3] = 1.0
    return result
