"""Results in nuScenes submission format, detection and tracking in separate files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec
import numpy as np

from ..errors import ResultsError
from ..files import atomic_write
from ..frame import Detections
from ..geometry import (
    Matrix,
    invert_rigid,
    quaternion_multiply,
    quaternion_to_matrix,
    yaw_to_quaternion,
)
from .classes import CLASS_RANGE, DETECTION_NAMES, TRACKING_NAMES, attribute_name
from .dataset import Sample

__all__ = ["SubmissionWriter", "detections_of", "read_results"]

MAX_BOXES = 500  # per sample, by the rules of the benchmark
META = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}


class SubmissionWriter:
    """Writes ``detection.json`` and ``tracking.json`` sample by sample.

    Use it in a ``with`` block: the files appear, whole, when the block ends without an error.
    Samples are written as they come, so memory does not grow with the data set.

    Boxes outside their class's range around the ego vehicle are left out, as the benchmark does
    not score them. Tracking keeps the benchmark's seven tracking classes and boxes of at least
    ``tracking_threshold``.

    Attributes:
        detection_path, tracking_path: the files.
        samples, boxes, tracked_boxes: how many were written.
    """

    def __init__(
        self,
        folder: str | Path,
        class_names: Sequence[str],
        tracking_threshold: float = 0.2,
        class_range: Mapping[str, float] = CLASS_RANGE,
    ) -> None:
        self.detection_path = Path(folder) / "detection.json"
        self.tracking_path = Path(folder) / "tracking.json"
        self.samples = self.boxes = self.tracked_boxes = 0
        self._names = tuple(class_names)
        self._threshold = tracking_threshold
        self._ranges = np.array([class_range.get(n, np.inf) for n in class_names])
        self._stack = ExitStack()
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._seen: set[str] = set()

    def __enter__(self) -> SubmissionWriter:
        self._files = (
            self._stack.enter_context(atomic_write(self.detection_path)),
            self._stack.enter_context(atomic_write(self.tracking_path)),
        )
        for file in self._files:
            file.write(b'{"meta":' + msgspec.json.encode(META) + b',"results":{')
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._files is not None:
            for file in self._files:
                file.write(b"}}\n")
        self._stack.__exit__(kind, error, trace)

    def add(self, sample: Sample, detections: Detections | None) -> None:
        """Add one sample; None (a skipped frame) counts as no boxes.

        Raises:
            ResultsError: the sample was added before, or the writer is not open.
        """
        if self._files is None:
            raise ResultsError("expected the writer to be used in a 'with' block")
        if sample.token in self._seen:
            raise ResultsError(f"sample {sample.token!r} was added twice")
        self._seen.add(sample.token)
        detected, tracked = ([], []) if detections is None else self._entries(sample, detections)
        key = (b"," if self.samples else b"") + msgspec.json.encode(sample.token) + b":"
        for file, entries in zip(self._files, (detected, tracked), strict=True):
            file.write(key + msgspec.json.encode(entries))
        self.samples += 1
        self.boxes += len(detected)
        self.tracked_boxes += len(tracked)

    def _entries(
        self, sample: Sample, detections: Detections
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        boxes = detections.boxes.astype(np.float64)
        in_ego = boxes[:, :3] @ sample.lidar2ego[:3, :3].T + sample.lidar2ego[:3, 3]
        near = np.hypot(in_ego[:, 0], in_ego[:, 1]) <= self._ranges[detections.labels]
        keep = np.flatnonzero(near)[:MAX_BOXES]
        boxes = boxes[keep]
        pose = sample.lidar2global
        centres = boxes[:, :3] @ pose[:3, :3].T + pose[:3, 3]
        turn = _quaternion(pose)
        rotations = quaternion_multiply(turn, yaw_to_quaternion(boxes[:, 6]))
        planar = np.concatenate((boxes[:, 7:9], np.zeros((len(boxes), 1))), axis=1)
        velocities = (planar @ pose[:3, :3].T)[:, :2]
        detected, tracked = [], []
        for i, row in enumerate(keep):
            name = self._names[detections.labels[row]]
            score = float(detections.scores[row])
            common = {
                "sample_token": sample.token,
                "translation": centres[i].tolist(),
                "size": boxes[i, [4, 3, 5]].tolist(),  # nuScenes: width, length, height
                "rotation": rotations[i].tolist(),
                "velocity": velocities[i].tolist(),
            }
            speed = float(np.hypot(*velocities[i]))
            detected.append(
                {
                    **common,
                    "detection_name": name,
                    "detection_score": score,
                    "attribute_name": attribute_name(name, speed),
                }
            )
            track = int(detections.track_ids[row])
            if name in TRACKING_NAMES and score >= self._threshold and track >= 0:
                tracked.append(
                    {
                        **common,
                        "tracking_id": str(track),
                        "tracking_name": name,
                        "tracking_score": score,
                    }
                )
        return detected, tracked


def read_results(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Entries per sample token of a detection or tracking file.

    Raises:
        ResultsError: the file cannot be read or is not in submission format.
    """

    class Results(msgspec.Struct):
        results: dict[str, list[dict[str, Any]]]

    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Results).results
    except OSError as error:
        raise ResultsError(f"cannot read results {str(path)!r}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ResultsError(
            f"expected {Path(path).name} in nuScenes submission format: {error}"
        ) from None


def detections_of(entries: Sequence[Mapping[str, Any]], sample: Sample) -> Detections:
    """Back from results entries to boxes in the sample's LiDAR frame, by falling score.

    Labels index ``DETECTION_NAMES``. Ids that are not numbers get a number of their own.

    Raises:
        ResultsError: an entry lacks a field, or names an unknown class.
    """
    world2lidar = invert_rigid(sample.lidar2global)
    rotation = world2lidar[:3, :3]
    boxes = np.zeros((len(entries), 10), dtype=np.float32)
    scores = np.zeros(len(entries), dtype=np.float32)
    labels = np.zeros(len(entries), dtype=np.int64)
    ids = np.full(len(entries), -1, dtype=np.int64)
    try:
        for i, entry in enumerate(entries):
            kind = "tracking" if "tracking_name" in entry else "detection"
            turned = rotation @ quaternion_to_matrix(entry["rotation"])
            width, length, height = entry["size"]
            boxes[i, :3] = rotation @ np.array(entry["translation"]) + world2lidar[:3, 3]
            boxes[i, 3:6] = length, width, height
            boxes[i, 6] = np.arctan2(turned[1, 0], turned[0, 0])
            boxes[i, 7:] = rotation @ np.array([*entry.get("velocity", (0, 0))[:2], 0.0])
            scores[i] = entry[f"{kind}_score"]
            labels[i] = DETECTION_NAMES.index(entry[f"{kind}_name"])
            if kind == "tracking":
                name = str(entry["tracking_id"])
                ids[i] = int(name) if name.isdecimal() else zlib.crc32(name.encode())
    except (KeyError, ValueError, TypeError) as error:
        raise ResultsError(
            f"an entry of sample {sample.token!r} is not in submission format: {error}"
        ) from None
    order = np.argsort(-scores, kind="stable")
    return Detections(boxes[order], scores[order], labels[order], ids[order])


def _quaternion(pose: Matrix) -> Matrix:
    """(4,) unit quaternion ``w x y z`` of a rigid transform, by its largest component."""
    r = pose[:3, :3]
    squares = np.array(
        [
            1 + r[0, 0] + r[1, 1] + r[2, 2],
            1 + r[0, 0] - r[1, 1] - r[2, 2],
            1 - r[0, 0] + r[1, 1] - r[2, 2],
            1 - r[0, 0] - r[1, 1] + r[2, 2],
        ]
    )
    wx, wy, wz = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    xy, xz, yz = r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1]
    products = np.array(
        [
            [squares[0], wx, wy, wz],
            [wx, squares[1], xy, xz],
            [wy, xy, squares[2], yz],
            [wz, xz, yz, squares[3]],
        ]
    )
    row = products[int(np.argmax(squares))]
    quaternion: Matrix = row / np.linalg.norm(row)
    return quaternion
