"""A plausible camera rig on a moving vehicle, with noise for pictures: for measurements."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .artifact import Manifest
from .frame import Camera, Frame
from .geometry import Matrix, invert_rigid

__all__ = ["rig_cameras", "rig_frames"]

SPEED = 8.0  # metres per second
TURN_RATE = 0.05  # radians per second


def rig_cameras(count: int, raw_size: tuple[int, int]) -> list[Camera]:
    """Cameras spread evenly around a LiDAR, 1 m out, 0.3 m below it, looking outwards.

    Each sees 1.15 times its share of the circle, at least 60 and at most 110 degrees.
    """
    height, width = raw_size
    view = np.clip(1.15 * 2 * np.pi / count, np.radians(60), np.radians(110))
    focal = width / 2 / np.tan(view / 2)
    intrinsic = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    cameras = []
    for index in range(count):
        angle = np.pi / 2 - 2 * np.pi * index / count  # the first looks along y, then clockwise
        ahead = np.array([np.cos(angle), np.sin(angle), 0.0])
        right = np.array([np.sin(angle), -np.cos(angle), 0.0])
        camera2lidar = np.eye(4)
        camera2lidar[:3, :3] = np.stack((right, [0.0, 0.0, -1.0], ahead), axis=1)
        camera2lidar[:3, 3] = ahead - [0.0, 0.0, 0.3]
        cameras.append(Camera(intrinsic, invert_rigid(camera2lidar)))
    return cameras


def rig_frames(
    manifest: Manifest, raw_size: tuple[int, int], interval: float = 0.1, seed: int = 0
) -> Iterator[Frame]:
    """Endless frames for the artifact's cameras: noise images, a vehicle on a gentle curve.

    Args:
        manifest: says how many cameras there are.
        raw_size: (height, width) of the raw images.
        interval: seconds between frames.
        seed: the same seed gives the same frames.
    """
    count = len(manifest.preprocessing.camera_names)
    cameras = rig_cameras(count, raw_size)
    rng = np.random.default_rng(seed)
    # A few pictures, taken in turn: making new noise would cost more than a small model.
    pool = rng.integers(0, 256, (max(4, count + 1), *raw_size, 3), dtype=np.uint8)
    number = 0
    while True:
        images = [pool[(number + i) % len(pool)] for i in range(count)]
        yield Frame(images, 1000.0 + number * interval, _pose(number * interval), cameras)
        number += 1


def _pose(seconds: float) -> Matrix:
    """Position on a circle that is driven at constant speed, starting towards +y."""
    heading = TURN_RATE * seconds
    radius = SPEED / TURN_RATE
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]]
    pose[:2, 3] = radius * np.array([np.cos(heading) - 1, np.sin(heading)])
    return pose
