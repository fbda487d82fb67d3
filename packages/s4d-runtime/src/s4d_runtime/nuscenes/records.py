"""What a data set in nuScenes layout is made of, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..geometry import Matrix

__all__ = ["CAMERA_ORDER", "Annotations", "CameraRecord", "Sample", "Scene"]

# The order of the cameras in every Sparse4D model.
CAMERA_ORDER = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)


@dataclass(frozen=True)
class CameraRecord:
    """One camera's image at a sample: its file, time (s) and calibration."""

    path: Path
    timestamp: float
    intrinsic: Matrix
    lidar2camera: Matrix


@dataclass(frozen=True)
class Sample:
    """One keyframe. Poses are those at the LiDAR's time; ``timestamp`` is in seconds."""

    token: str
    timestamp: float
    scene: str
    lidar2ego: Matrix
    ego2global: Matrix
    lidar_path: Path
    cameras: dict[str, CameraRecord]

    @property
    def lidar2global(self) -> Matrix:
        return self.ego2global @ self.lidar2ego


@dataclass(frozen=True)
class Scene:
    """A drive: its name and the tokens of its samples in time order."""

    token: str
    name: str
    description: str
    samples: tuple[str, ...]


@dataclass(frozen=True)
class Annotations:
    """Annotated objects of one sample, in its LiDAR frame.

    Attributes:
        boxes: (M, 10) float64 ``x y z w l h yaw vx vy vz`` as in ``Detections``; velocities are
            NaN where the annotations do not give one, vz is 0.
        labels: (M,) index into ``DETECTION_NAMES``, -1 for categories that are not scored.
        categories: (M,) names.
        track_ids: (M,) number of the object in the instance table.
        tokens: (M,) annotation tokens.
        num_points: (M,) LiDAR and radar points inside.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    categories: tuple[str, ...]
    track_ids: NDArray[np.int64]
    tokens: tuple[str, ...]
    num_points: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)
