"""The sensors of the synthetic car: six cameras and a roof LiDAR, laid out like nuScenes' car.

The numbers are rounded, nominal ones: five cameras of 70 degrees and a rear one of 90 (nominally
110) degrees, all about 1.55 m above the road, and a 32-beam LiDAR turned by -90 degrees. Cameras
fire while the LiDAR turns past them, so each has its own time offset and its own ego pose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Array, euler_rotation, transform

__all__ = ["LIDAR", "Camera", "Lidar", "cameras"]

# A camera looks along its z axis with x to the right and y down; ego is x forward, z up.
_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True)
class Camera:
    """One pinhole camera without distortion."""

    name: str
    intrinsic: Array
    """(3, 3), pixels of the synthetic image."""
    rotation: Array
    """(3, 3), camera to ego."""
    translation: Array
    """(3,), camera in ego, metres."""
    delay: float
    """Seconds from the LiDAR's time stamp to the exposure (negative: before)."""
    width: int
    height: int

    @property
    def to_ego(self) -> Array:
        return transform(self.rotation, self.translation)


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR, taken as if it fired all beams at one time."""

    rotation: Array
    translation: Array
    elevations: Array
    """(beams,) radians, from low to high."""
    columns: int
    max_range: float

    @property
    def to_ego(self) -> Array:
        return transform(self.rotation, self.translation)


LIDAR = Lidar(
    rotation=euler_rotation(np.radians(-90.0)),
    translation=np.array([0.94, 0.0, 1.84]),
    elevations=np.radians(np.linspace(-30.67, 10.67, 32)),
    columns=1084,
    max_range=90.0,
)

# name, heading (degrees, left positive), x, y, z (m), focal (px at 1600 x 900), delay (ms)
_LAYOUT = (
    ("CAM_FRONT", 0.3, 1.70, 0.02, 1.51, 1266.0, -35.5),
    ("CAM_FRONT_RIGHT", -55.5, 1.55, -0.49, 1.50, 1261.0, -27.5),
    ("CAM_FRONT_LEFT", 55.5, 1.52, 0.49, 1.51, 1273.0, -43.0),
    ("CAM_BACK", 179.7, 0.03, 0.00, 1.58, 809.0, -10.5),
    ("CAM_BACK_LEFT", 108.5, 1.04, 0.48, 1.59, 1257.0, -0.5),
    ("CAM_BACK_RIGHT", -110.5, 1.01, -0.48, 1.56, 1260.0, -20.0),
)


def cameras(width: int, height: int) -> tuple[Camera, ...]:
    """The six cameras with intrinsics scaled from 1600 x 900 to ``width`` x ``height`` pixels.

    Another aspect ratio keeps the horizontal field of view and the horizon at the same fraction
    of the height.
    """
    scale = width / 1600.0
    rig = []
    for index, (name, heading, x, y, z, focal, delay) in enumerate(_LAYOUT):
        centre_x = (816.0 + 4.0 * (index % 3)) * scale
        centre_y = 491.0 / 900.0 * height
        intrinsic = np.array(
            [[focal * scale, 0.0, centre_x], [0.0, focal * scale, centre_y], [0.0, 0.0, 1.0]]
        )
        # A fraction of a degree of pitch, as a mounted camera has.
        rotation = euler_rotation(np.radians(heading), np.radians(0.3)) @ _OPTICAL
        rig.append(
            Camera(name, intrinsic, rotation, np.array([x, y, z]), delay * 1e-3, width, height)
        )
    return tuple(rig)
