"""Detections to the devkit's result files, through the writer of s4d-runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.index import DriveIndex
from ..errors import EvaluationError
from .found import Found


def write_submission(
    found: Found,
    index: DriveIndex,
    split: str | None,
    class_names: Sequence[str],
    folder: Path,
    tracking_threshold: float = 0.2,
) -> tuple[Path, Path]:
    """Writes `detection.json` and `tracking.json` with every keyframe of the split.

    A keyframe without detections gets an empty list. Boxes with a score below
    `tracking_threshold` are detections, but are not tracked.

    Raises:
        EvaluationError: s4d-runtime, which has the writer, is not installed.
    """
    try:
        from s4d_runtime import Detections
        from s4d_runtime.nuscenes import Sample, SubmissionWriter
    except ImportError:
        raise EvaluationError(
            "writing nuScenes results needs s4d-runtime; install s4d-train[runtime]."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    with SubmissionWriter(folder, class_names, tracking_threshold) as writer:
        for row in index.samples(split):
            token = index.token[row].decode()
            sample = Sample(
                token=token,
                timestamp=float(index.timestamp[row]) * 1e-6,
                scene=index.scenes[index.scene[row]],
                lidar2ego=np.asarray(index.lidar2ego[row]),
                ego2global=np.asarray(index.ego2global[row]),
                lidar_path=Path(index.lidar_file[row].decode()),
                cameras={},
            )
            detections = found.samples.get(token)
            writer.add(sample, None if detections is None else Detections(*detections))
    return writer.detection_path, writer.tracking_path
