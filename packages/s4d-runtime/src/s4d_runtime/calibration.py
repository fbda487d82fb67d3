"""Is this camera's calibration sound? Answered anew only when it changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import CalibrationError, FrameError
from .frame import Camera
from .geometry import Matrix, is_rigid

__all__ = ["CalibrationMemory", "Refusal", "check_matrix", "rows_text"]

MAX_CAMERA_OFFSET = 100.0  # metres from the LiDAR
MAX_ENTRY = 1e9  # of any matrix: beyond, nothing is a length or a focal length


class Refusal(Exception):
    """Internal: a cause of ``policy.CAUSES`` and the public error that goes with it."""

    def __init__(self, cause: str, error: FrameError) -> None:
        super().__init__(str(error))
        self.cause = cause
        self.error = error


class CalibrationMemory:
    """The last sound calibration of each camera, by its bytes: most vehicles never change it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, tuple[Matrix, Matrix]]] = {}

    def check(self, camera: Camera, shape: tuple[int, ...], name: str) -> tuple[Matrix, Matrix]:
        """Intrinsic (3, 3) and lidar2camera (4, 4) as float64.

        Raises:
            Refusal: not a pinhole matrix for this image size, or not a rigid transform.
        """
        key = self._key(camera, shape)
        known = self._known.get(name)
        if key is not None and known is not None and known[0] == key:
            return known[1]
        result = _check_camera(camera, shape, name)
        if key is not None:
            self._known[name] = (key, result)
        return result

    @staticmethod
    def _key(camera: Camera, shape: tuple[int, ...]) -> bytes | None:
        """All that the check depends on, or None where that is not plain float64."""
        key = b"%d %d " % tuple(shape[:2])
        for name, side in (("intrinsic", 3), ("lidar2camera", 4)):
            matrix: Any = getattr(camera, name, None)
            if type(matrix) is not np.ndarray or matrix.dtype != np.float64:
                return None
            if matrix.shape != (side, side):
                return None
            key += matrix.tobytes()
        return key


def _check_camera(camera: Camera, shape: tuple[int, ...], name: str) -> tuple[Matrix, Matrix]:
    try:
        raw_intrinsic, raw_extrinsic = camera.intrinsic, camera.lidar2camera
    except AttributeError:
        raise Refusal(
            "bad_calibration",
            CalibrationError(
                f"expected the calibration of {name} with intrinsic and lidar2camera, "
                f"got {type(camera).__name__}"
            ),
        ) from None
    k = check_matrix(
        raw_intrinsic, (3, 3), f"intrinsic of {name}", "bad_calibration", CalibrationError
    )
    t = check_matrix(
        raw_extrinsic, (4, 4), f"lidar2camera of {name}", "bad_calibration", CalibrationError
    )
    height, width = shape[:2]
    size = max(height, width)
    in_image = -0.25 * width <= k[0, 2] <= 1.25 * width and (
        -0.25 * height <= k[1, 2] <= 1.25 * height
    )
    focal = 0.05 * size <= min(k[0, 0], k[1, 1]) and max(k[0, 0], k[1, 1]) <= 100 * size
    pinhole = np.abs(k[2] - (0, 0, 1)).max() <= 1e-6 and abs(k[1, 0]) <= 1e-6 * size
    if not (in_image and focal and pinhole):
        raise Refusal(
            "bad_calibration",
            CalibrationError(
                f"expected the intrinsic of {name} to be a pinhole matrix for its "
                f"{height} x {width} image, got {rows_text(k)}"
            ),
        )
    if not is_rigid(t) or np.abs(t[:3, 3]).max() > MAX_CAMERA_OFFSET:
        raise Refusal(
            "bad_calibration",
            CalibrationError(
                f"expected lidar2camera of {name} to be a rigid transform in metres "
                f"(within {MAX_CAMERA_OFFSET:g} m), got {rows_text(t)}"
            ),
        )
    return k, t


def check_matrix(
    value: Any, shape: tuple[int, int], name: str, cause: str, error: type[FrameError]
) -> Matrix:
    """A matrix of this shape as float64, finite.

    Raises:
        Refusal: with this cause, and this class of error.
    """
    try:
        given = np.asarray(value)
    except Exception:  # ragged lists, and whatever a foreign array raises
        given = np.empty(0, dtype=object)
    if given.dtype.kind not in "fiu":  # not text, booleans or complex numbers
        raise Refusal(
            cause, error(f"expected {name} as a {shape} matrix, got {type(value).__name__}")
        )
    if given.shape != shape:
        raise Refusal(cause, error(f"expected {name} of shape {shape}, got {given.shape}"))
    matrix = given.astype(np.float64)
    if not np.abs(matrix).max() <= MAX_ENTRY:  # also false for NaN
        raise Refusal(
            cause,
            error(f"expected {name} to be finite, within {MAX_ENTRY:g}, got {rows_text(matrix)}"),
        )
    return matrix


def rows_text(matrix: Matrix) -> str:
    """A matrix in one line, for messages."""
    return "[" + "; ".join(" ".join(f"{v:.4g}" for v in row) for row in matrix) + "]"
