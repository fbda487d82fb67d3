"""What goes into the pipeline and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Camera", "Detections", "Frame"]


@dataclass(frozen=True)
class Camera:
    """Calibration of one camera.

    Attributes:
        intrinsic: (3, 3) pinhole matrix for the raw image, pixels.
        lidar2camera: (4, 4) rigid transform, metres: LiDAR frame at the frame's time to the
            camera (x right, y down, z forward) at the image's time, ego motion included.
    """

    intrinsic: NDArray[np.floating[Any]]
    lidar2camera: NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Frame:
    """All cameras at one moment.

    Attributes:
        images: per camera, in the manifest's order, (H, W, 3) uint8 RGB: a numpy array, an array
            that speaks DLPack (on the host, or on the pipeline's CUDA device), or what
            ``Pipeline.prepare`` returned. Sizes may differ between cameras. None: no image came.
        timestamp: seconds, float64.
        lidar2global: (4, 4) float64, LiDAR frame to a fixed world frame, metres.
        cameras: per camera its calibration.
        camera_timestamps: optional, seconds per camera, to detect stale images.
    """

    images: Sequence[Any]
    timestamp: float
    lidar2global: NDArray[np.floating[Any]]
    cameras: Sequence[Camera]
    camera_timestamps: Sequence[float] | None = None


@dataclass(frozen=True)
class Detections:
    """Tracked boxes of one frame, by falling score.

    Attributes:
        boxes: (K, 10) float32 ``x y z w l h yaw vx vy vz``: LiDAR frame of this frame, metres,
            radians, metres per second; z is the centre of the box. ``w`` is the size along the
            box's heading and ``l`` across it (the family's column order).
        scores: (K,) float32 in 0..1.
        labels: (K,) int64, index into ``Manifest.class_names``.
        track_ids: (K,) int64, unique as long as the pipeline lives or until ``reset()``;
            -1 where the model gave none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    track_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        keep = self.scores >= score
        return Detections(
            self.boxes[keep], self.scores[keep], self.labels[keep], self.track_ids[keep]
        )
