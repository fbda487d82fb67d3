"""Rigid transforms and boxes, in float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "BOX_EDGES",
    "box_corners",
    "invert_rigid",
    "is_rigid",
    "lidar2img",
    "quaternion_to_matrix",
    "transform",
    "yaw_to_quaternion",
]

Matrix = NDArray[np.float64]

# Pairs of corner numbers (see box_corners): front face, rear face, the four edges between them.
BOX_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)


def quaternion_to_matrix(q: ArrayLike) -> Matrix:
    """(3, 3) rotation of a quaternion ``w x y z``; it is normalised first.

    Raises:
        ValueError: its length is zero or not finite.
    """
    w, x, y, z = np.asarray(q, dtype=np.float64)
    n = float(np.sqrt(w * w + x * x + y * y + z * z))
    if not (np.isfinite(n) and n > 1e-9):
        raise ValueError(f"expected a quaternion w x y z of length 1, got {[w, x, y, z]}")
    w, x, y, z = w / n, x / n, y / n, z / n
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_multiply(a: ArrayLike, b: ArrayLike) -> Matrix:
    """Hamilton product ``a b`` of quaternions ``w x y z``; leading axes broadcast."""
    aw, ax, ay, az = np.moveaxis(np.asarray(a, dtype=np.float64), -1, 0)
    bw, bx, by, bz = np.moveaxis(np.asarray(b, dtype=np.float64), -1, 0)
    product = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return np.stack(product, axis=-1)


def yaw_to_quaternion(yaw: ArrayLike) -> Matrix:
    """(..., 4) quaternion ``w x y z`` of a turn by ``yaw`` radians about z."""
    half = np.asarray(yaw, dtype=np.float64) / 2
    zero = np.zeros_like(half)
    return np.stack((np.cos(half), zero, zero, np.sin(half)), axis=-1)


def transform(rotation: ArrayLike, translation: ArrayLike) -> Matrix:
    """(4, 4) of a quaternion ``w x y z`` or a (3, 3) matrix, and a translation (3,)."""
    r = np.asarray(rotation, dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_to_matrix(r) if r.shape == (4,) else r
    matrix[:3, 3] = np.asarray(translation, dtype=np.float64)
    return matrix


def invert_rigid(matrix: Matrix) -> Matrix:
    """Inverse of a rigid (4, 4): transposed rotation, no division."""
    inverse = np.eye(4)
    inverse[:3, :3] = matrix[:3, :3].T
    inverse[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return inverse


def is_rigid(matrix: NDArray[Any], tolerance: float = 1e-3) -> bool:
    """Whether a finite (4, 4) is a right-handed rotation and a translation, nothing else."""
    rotation = matrix[:3, :3]
    straight = np.abs(rotation @ rotation.T - np.eye(3)).max() <= tolerance
    bottom = np.abs(matrix[3] - (0, 0, 0, 1)).max() <= 1e-6
    return bool(straight and bottom and np.linalg.det(rotation) > 0)


def lidar2img(
    intrinsic: Matrix, lidar2camera: Matrix, image_matrix: Matrix | None = None
) -> Matrix:
    """(4, 4) LiDAR point to pixel: ``image_matrix @ intrinsic @ lidar2camera``.

    ``image_matrix`` (3, 3) maps raw pixels to network pixels; None leaves raw pixels. A point
    (x, y, z, 1) gives (u d, v d, d, 1) with the depth d in metres.
    """
    camera2img = np.eye(4)
    camera2img[:3, :3] = intrinsic if image_matrix is None else image_matrix @ intrinsic
    return camera2img @ lidar2camera


def box_corners(boxes: NDArray[Any]) -> Matrix:
    """(K, 8, 3) corners of boxes (K, >= 7) ``x y z w l h yaw``.

    Corners 0 to 3 are the front face (upper left, upper right, lower right, lower left, as seen
    from behind the box), 4 to 7 the rear face in the same order. ``w`` lies along the heading.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    along = np.array([1, 1, 1, 1, -1, -1, -1, -1]) / 2
    across = np.array([1, -1, -1, 1, 1, -1, -1, 1]) / 2
    up = np.array([1, 1, -1, -1, 1, 1, -1, -1]) / 2
    dx, dy, dz = boxes[:, 3:4] * along, boxes[:, 4:5] * across, boxes[:, 5:6] * up
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    local = np.stack((dx * cos - dy * sin, dx * sin + dy * cos, dz), axis=-1)
    return local + boxes[:, None, :3]
