"""Frames to verify with: random ones from a seed, or images of a data set in nuScenes layout.

Every sequence has ego motion, one gap longer than the model's limit and one reset, because these
are the branches of the temporal graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s4d_core import Sparse4DConfig
from s4d_ops.image import plan_resize_crop, resize_crop
from s4d_runtime import Frame
from s4d_runtime.geometry import lidar2img as project_matrix
from s4d_runtime.nuscenes import NuScenes

from .errors import VerificationError

__all__ = ["GraphFrame", "Timing", "frame_inputs", "nuscenes_frames", "random_frames", "timeline"]

STEP = 0.5  # seconds between ordinary frames
GAP = 3.5
CAMERA_YAW = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)  # degrees, in nuScenes' camera order


@dataclass(frozen=True)
class GraphFrame:
    """What one frame brings, before the state.

    Attributes:
        images: (N, H, W, 3) uint8 RGB at network size.
        lidar2img: (N, 4, 4) float32 to network pixels.
        timestamp: seconds.
        lidar2global: (4, 4) float64.
        reset: forget the past before this frame.
    """

    images: NDArray[np.uint8]
    lidar2img: NDArray[np.float32]
    timestamp: float
    lidar2global: NDArray[np.float64]
    reset: bool


@dataclass(frozen=True)
class Timing:
    """When a frame comes, from where, and whether the past is dropped before it."""

    timestamp: float
    lidar2global: NDArray[np.float64]
    reset: bool


def timeline(count: int, max_time_interval: float) -> list[Timing]:
    """`count` moments of a curved drive: a gap in the middle, a reset at three quarters."""
    gap, reset = count // 2, (3 * count) // 4
    moments: list[Timing] = []
    pose, time = np.eye(4), 0.0
    for index in range(count):
        if index:
            step = max(GAP, 1.5 * max_time_interval) if index == gap and gap != reset else STEP
            time += step
            pose = pose @ _motion(speed=6.0, yaw_rate=0.08, seconds=step)
        moments.append(Timing(time, pose.copy(), bool(index) and index == reset))
    return moments


def _motion(speed: float, yaw_rate: float, seconds: float) -> NDArray[np.float64]:
    angle = yaw_rate * seconds
    motion = np.eye(4)
    motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    motion[:3, 3] = [speed * seconds, 0.2 * seconds, 0.01 * seconds]
    return motion


def random_frames(config: Sparse4DConfig, count: int, seed: int = 0) -> Iterator[GraphFrame]:
    """Seeded frames without any data set: smooth random pictures from a ring of cameras.

    The vehicle moves in a curve; a gap in time comes in the middle, a reset at three quarters.
    """
    rng = np.random.default_rng(seed)
    lidar2img = _camera_ring(config)
    height, width = config.image.size
    grid = (config.num_cameras, max(2, height // 16), max(2, width // 16), 3)
    scene = rng.integers(0, 256, grid).astype(np.float32)
    for moment in timeline(count, config.max_time_interval):
        scene = np.clip(scene + rng.normal(0, 12, grid), 0, 255).astype(np.float32)
        images = _enlarge(scene, height, width)
        images += rng.normal(0, 6, images.shape).astype(np.float32)
        yield GraphFrame(
            np.clip(images, 0, 255).astype(np.uint8),
            lidar2img,
            moment.timestamp,
            moment.lidar2global,
            moment.reset,
        )


def _camera_ring(config: Sparse4DConfig) -> NDArray[np.float32]:
    """Cameras around the vehicle, looking outwards, 70 degrees wide."""
    height, width = config.image.size
    count = config.num_cameras
    focal = 0.71 * width
    intrinsic = np.array(
        [[focal, 0, width / 2, 0], [0, focal, 0.35 * height, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    matrices = []
    for index in range(count):
        yaw = CAMERA_YAW[index] if count == len(CAMERA_YAW) else 360.0 * index / count
        angle = np.deg2rad(yaw)
        forward = np.array([np.cos(angle), np.sin(angle), 0.0])
        right = np.array([np.sin(angle), -np.cos(angle), 0.0])
        rotation = np.stack([right, [0.0, 0.0, -1.0], forward])  # rows: camera x, y, z
        lidar2camera = np.eye(4)
        lidar2camera[:3, :3] = rotation
        lidar2camera[:3, 3] = -rotation @ (0.6 * forward + [0.0, 0.0, -0.3])
        matrices.append(intrinsic @ lidar2camera)
    return np.stack(matrices).astype(np.float32)


def _enlarge(small: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear enlargement of (N, h, w, 3)."""
    rows = np.linspace(0, small.shape[1] - 1, height)
    columns = np.linspace(0, small.shape[2] - 1, width)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom = np.minimum(top + 1, small.shape[1] - 1)
    right = np.minimum(left + 1, small.shape[2] - 1)
    down = (rows - top).astype(np.float32)[None, :, None, None]
    across = (columns - left).astype(np.float32)[None, None, :, None]
    upper = small[:, top][:, :, left] * (1 - across) + small[:, top][:, :, right] * across
    lower = small[:, bottom][:, :, left] * (1 - across) + small[:, bottom][:, :, right] * across
    return upper * (1 - down) + lower * down


def frame_inputs(frame: GraphFrame, previous: GraphFrame | None) -> dict[str, NDArray[np.generic]]:
    """The graph's inputs beside the state; the pose difference is formed in float64."""
    fresh = previous is None or frame.reset
    if fresh:
        transform, interval = np.eye(4), 0.0
    else:
        assert previous is not None
        transform = np.linalg.inv(frame.lidar2global) @ previous.lidar2global
        interval = frame.timestamp - previous.timestamp
    return {
        "images": frame.images,
        "lidar2img": frame.lidar2img,
        "prev_to_current": transform.astype(np.float32),
        "time_interval": np.array([interval], dtype=np.float32),
        "state_valid": np.array([0 if fresh else 1], dtype=np.int32),
    }


def nuscenes_frames(
    config: Sparse4DConfig, data: str | os.PathLike[str], count: int
) -> Iterator[GraphFrame]:
    """Frames with the images, calibrations and poses of a data set in nuScenes layout.

    Images go through the same resize and crop as on board. A scene with fewer than `count`
    samples is used again, its images shifted sideways and dimmed, on a synthetic drive.

    Raises:
        DatasetError: no such data set, or a broken one.
        VerificationError: it lacks a camera of the model.
    """
    dataset = NuScenes(Path(data))
    scenes = [scene for scene in dataset.scenes if scene.samples]
    if not scenes:
        raise VerificationError(f"the data set in {os.fspath(data)!r} has no samples")
    scene = max(scenes, key=lambda item: len(item.samples))
    real = len(scene.samples) >= count
    for index, moment in enumerate(timeline(count, config.max_time_interval)):
        sample = dataset.sample(scene.samples[index % len(scene.samples)])
        images, lidar2img = _prepare(config, dataset.frame(sample, config.camera_names))
        round_ = index // len(scene.samples)
        if round_:
            shifted = np.roll(images, 7 * round_, axis=2).astype(np.float32)
            images = (shifted * 0.97**round_).astype(np.uint8)
        first = dataset.sample(scene.samples[0])
        if real:
            # Real motion; the gap of the time line is kept by moving later frames away in time.
            late = 0.0 if index < count // 2 else GAP + config.max_time_interval
            time, pose = sample.timestamp - first.timestamp + late, sample.lidar2global
        else:
            time, pose = moment.timestamp, first.lidar2global @ moment.lidar2global
        yield GraphFrame(images, lidar2img, time, pose, moment.reset)


def _prepare(config: Sparse4DConfig, frame: Frame) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Network images (N, h, w, 3) and their projections (N, 4, 4)."""
    images, matrices = [], []
    for name, image, camera in zip(config.camera_names, frame.images, frame.cameras, strict=True):
        if image is None or camera is None:
            raise VerificationError(f"the data set has no image of {name}, which the model needs")
        plan = plan_resize_crop(image.shape[:2], config.image.size)
        images.append(resize_crop(image, plan, config.image.resize_filter))
        matrices.append(project_matrix(camera.intrinsic, camera.lidar2camera, plan.matrix))
    return np.stack(images), np.stack(matrices).astype(np.float32)
