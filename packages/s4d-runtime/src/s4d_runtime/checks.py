"""Is this frame sound? Every check that needs no past. Nothing here changes state.

Each check raises a ``FrameError`` that carries its cause (a name of ``policy.CAUSES``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .calibration import CalibrationMemory, Refusal, check_matrix, rows_text
from .errors import (
    CameraCountError,
    FrameError,
    ImageError,
    PoseError,
    TimestampError,
)
from .frame import Frame
from .geometry import Matrix, is_rigid
from .image_input import DeviceImage, ImageInput, PreparedImage

__all__ = ["CheckedFrame", "Refusal", "check_frame", "check_image"]

Borrow = Callable[[Any], "DeviceImage | None"]

MAX_SIDE = 16384  # pixels
MAX_POSITION = 1e8  # metres from the world's origin: beyond, float64 loses the millimetre
MAX_SECONDS = 1e11  # the year 5138; smaller units of today's time lie above


class CheckedFrame:
    """A sound frame as plain arrays: images, float64 matrices, time."""

    def __init__(
        self,
        images: list[ImageInput],
        intrinsics: list[Matrix],
        lidar2cameras: list[Matrix],
        lidar2global: Matrix,
        timestamp: float,
        camera_timestamps: tuple[float, ...] | None,
    ) -> None:
        self.images = images
        self.intrinsics = intrinsics
        self.lidar2cameras = lidar2cameras
        self.lidar2global = lidar2global
        self.timestamp = timestamp
        self.camera_timestamps = camera_timestamps

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) per camera."""
        return tuple((i.shape[0], i.shape[1]) for i in self.images)


def check_frame(
    frame: Frame,
    camera_names: tuple[str, ...],
    max_skew: float,
    borrow: Borrow,
    calibrations: CalibrationMemory,
) -> CheckedFrame:
    """Check everything about a frame that can be checked without the frames before.

    Args:
        frame: what the user gave.
        camera_names: of the manifest.
        max_skew: seconds that a camera's own time may differ from the frame's.
        borrow: the engine's way to see a foreign device array as an image.
        calibrations: those of the frames before.

    Raises:
        Refusal: with the cause and the public error.
        FrameError: it is not a frame at all.
    """
    if not isinstance(frame, Frame):
        raise FrameError(f"expected an s4d_runtime.Frame, got {type(frame).__name__}")
    timestamp = _time(frame.timestamp, "timestamp")
    _count("images", frame.images, camera_names)
    _count("cameras", frame.cameras, camera_names)
    images = [check_image(i, n, borrow) for i, n in zip(frame.images, camera_names, strict=True)]
    stamps = _camera_times(frame, camera_names, timestamp, max_skew)
    pairs = [
        calibrations.check(camera, image.shape, name)
        for camera, image, name in zip(frame.cameras, images, camera_names, strict=True)
    ]
    pose = check_matrix(frame.lidar2global, (4, 4), "lidar2global", "bad_pose", PoseError)
    if not is_rigid(pose) or np.abs(pose[:3, 3]).max() > MAX_POSITION:
        raise Refusal(
            "bad_pose",
            PoseError(
                "expected lidar2global to be a rigid transform in metres "
                f"(within {MAX_POSITION:g} m), got {rows_text(pose)}"
            ),
        )
    return CheckedFrame(
        images, [k for k, _ in pairs], [t for _, t in pairs], pose, timestamp, stamps
    )


def _time(value: Any, name: str) -> float:
    try:
        seconds = float(value)
    except Exception:  # whatever a foreign type raises, it is not a time
        seconds = math.nan
    if not math.isfinite(seconds):
        raise Refusal(
            "bad_time", TimestampError(f"expected {name} in finite seconds, got {_brief(value)}")
        )
    if abs(seconds) > MAX_SECONDS:
        raise Refusal(
            "bad_time",
            TimestampError(
                f"expected {name} in seconds, got {_brief(value)}, more than three thousand years: "
                "milliseconds, microseconds or nanoseconds? Divide first"
            ),
        )
    return seconds


def _count(what: str, items: Any, names: tuple[str, ...]) -> None:
    try:
        count = len(items)
        missing = [n for n, i in zip(names, items, strict=False) if i is None]
    except TypeError:
        raise Refusal(
            "missing_camera",
            CameraCountError(
                f"expected a sequence of {len(names)} {what}, got {type(items).__name__}"
            ),
        ) from None
    missing += names[count:]
    if missing or count != len(names):
        detail = f"; missing: {', '.join(missing)}" if missing else ""
        raise Refusal(
            "missing_camera",
            CameraCountError(
                f"expected {len(names)} {what} in the order {', '.join(names)}, "
                f"got {count - sum(i is None for i in items)}{detail}"
            ),
        )


def check_image(image: Any, name: str, borrow: Borrow) -> ImageInput:
    """An image as an engine can take it.

    Raises:
        Refusal: it is none.
    """
    if isinstance(image, PreparedImage):
        return image
    if not isinstance(image, np.ndarray):
        try:
            image = borrow(image) or np.from_dlpack(image)
        except Exception as error:  # whatever a foreign array raises, it is not an image for us
            raise Refusal(
                "bad_image",
                ImageError(
                    f"expected the image of {name} as a numpy array or a DLPack array of the "
                    f"host or the engine's device, got {type(image).__name__} ({str(error)[:80]})"
                ),
            ) from None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise Refusal(
            "bad_image",
            ImageError(
                f"expected the image of {name} as uint8 RGB (height, width, 3), "
                f"got {image.dtype} {image.shape}"
            ),
        )
    height, width = image.shape[:2]
    if not (8 <= height <= MAX_SIDE and 8 <= width <= MAX_SIDE):
        raise Refusal(
            "bad_image",
            ImageError(
                f"expected the image of {name} with sides of 8..{MAX_SIDE} pixels, "
                f"got {height} x {width}"
            ),
        )
    if isinstance(image, DeviceImage):
        if image.strides[1:] != (3, 1) or image.strides[0] < 3 * width:
            raise Refusal(
                "bad_image",
                ImageError(
                    f"expected each row of the device image of {name} to lie together, "
                    f"got strides {image.strides}"
                ),
            )
        return image
    # The kernels read whole pixels: a view with turned channels or columns is copied first.
    plain = image.strides[2] == 1 and image.strides[1] >= 3 and image.strides[0] >= 0
    return image if plain else np.ascontiguousarray(image)


def _camera_times(
    frame: Frame, names: tuple[str, ...], timestamp: float, max_skew: float
) -> tuple[float, ...] | None:
    if frame.camera_timestamps is None:
        return None
    _count("camera_timestamps", frame.camera_timestamps, names)
    stamps = tuple(
        _time(s, f"the timestamp of {n}")
        for s, n in zip(frame.camera_timestamps, names, strict=True)
    )
    worst = max(range(len(names)), key=lambda i: abs(stamps[i] - timestamp))
    skew = stamps[worst] - timestamp
    if abs(skew) > max_skew:
        raise Refusal(
            "stale_camera",
            TimestampError(
                f"expected every image within {max_skew:g} s of the frame, "
                f"got {names[worst]} {skew:+.3f} s away"
            ),
        )
    return stamps


def _brief(value: Any) -> str:
    """A scalar as it is, anything else by its type: messages stay on one line."""
    plain = isinstance(value, (int, float, np.number)) or value is None
    return f"{value!r:.40}" if plain else type(value).__name__
