"""Small rigid-motion helpers on numpy; quaternions are nuScenes' (w, x, y, z)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

__all__ = ["Array", "euler_rotation", "matrix_to_quaternion", "transform", "yaw_matrix"]


def yaw_matrix(yaw: float) -> Array:
    """(3, 3) rotation about z by ``yaw`` radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def euler_rotation(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """(3, 3) rotation Rz(yaw) Ry(pitch) Rx(roll), radians."""
    cp, sp = np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    about_y = np.array([[cp, 0.0, sp], [0.0, 1.0, 0.0], [-sp, 0.0, cp]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cr, -sr], [0.0, sr, cr]])
    return yaw_matrix(yaw) @ about_y @ about_x


def matrix_to_quaternion(matrix: Array) -> list[float]:
    """Unit quaternion [w, x, y, z] of a (3, 3) rotation matrix.

    The largest of the four components is taken from its square root, so that no case divides by a
    small number (Shepperd's method).
    """
    m = matrix
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    squares = np.array([trace, m[0, 0], m[1, 1], m[2, 2]])
    largest = int(np.argmax(squares))
    if largest == 0:
        q = np.array([1.0 + trace, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    else:
        i = largest - 1
        j, k = (i + 1) % 3, (i + 2) % 3
        q = np.zeros(4)
        q[0] = m[k, j] - m[j, k]
        q[1 + i] = 1.0 + m[i, i] - m[j, j] - m[k, k]
        q[1 + j] = m[j, i] + m[i, j]
        q[1 + k] = m[k, i] + m[i, k]
    q /= np.linalg.norm(q)
    return [float(v) for v in q]


def transform(rotation: Array, translation: Array) -> Array:
    """(4, 4) matrix of a rotation (3, 3) and a translation (3,)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix
