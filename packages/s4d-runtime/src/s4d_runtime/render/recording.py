"""A drive as a rerun recording (extra ``rerun``): cameras, LiDAR, boxes and tracks in space."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, OutputError
from ..frame import Frame
from ..geometry import Matrix, invert_rigid
from ..nuscenes.records import Sample
from .objects import Objects
from .style import GROUND_TRUTH, track_colour

__all__ = ["Recording"]

_MEDIA_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


class Recording:
    """Writes ``NAME.rrd``, to be opened with ``rerun NAME.rrd``.

    Each scene lies under ``SCENE/``, its positions relative to where its first frame was, so that
    the viewer's single precision suffices. Times are on the lines ``frame`` and ``time``.

    Args:
        path: the file; it appears under its name when the recording is closed.

    Raises:
        MissingExtraError: rerun-sdk is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            rerun: Any = import_module("rerun")
        except ImportError:
            raise MissingExtraError(
                "a recording needs the package rerun-sdk; install s4d-runtime[rerun]"
            ) from None
        self._rr = rerun
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._stream = rerun.RecordingStream("s4d")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()
        except OSError as error:
            raise OutputError(f"cannot write {str(path)!r}: {error.strerror}") from None
        self._stream.save(str(self._partial))
        self._scene = ""
        self._origin = np.zeros(3)
        self._frames = 0

    def add(
        self,
        sample: Sample,
        frame: Frame,
        camera_names: Sequence[str],
        objects: Objects | None,
        truth: Objects | None,
        points: NDArray[np.float32] | None,
    ) -> None:
        """One frame. Images are copied from the data set's files as they are."""
        rr, log = self._rr, self._stream.log
        root = sample.scene or "scene"
        if root != self._scene:
            self._scene, self._origin = root, frame.lidar2global[:3, 3].copy()
            log(root, rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        self._stream.set_time("frame", sequence=self._frames)
        self._stream.set_time("time", timestamp=frame.timestamp)
        self._frames += 1
        vehicle = f"{root}/vehicle"
        pose = np.array(frame.lidar2global, dtype=np.float64)
        pose[:3, 3] -= self._origin
        log(vehicle, _transform(rr, pose))
        for name, camera in zip(camera_names, frame.cameras, strict=True):
            record = sample.cameras.get(name)
            if record is not None and camera is not None:
                self._camera(f"{vehicle}/{name}", record.path, camera)
        if points is not None:
            log(f"{vehicle}/lidar", rr.Points3D(points, radii=0.03, colors=(110, 120, 135)))
        for label, group in (("objects", objects), ("annotations", truth)):
            if group is not None:
                self._boxes(f"{vehicle}/{label}", group, truth=label == "annotations")

    def close(self) -> Path:
        """Finish the file and give it its name."""
        self._stream.flush()
        self._stream.disconnect()
        self._partial.replace(self._path)
        return self._path

    def _camera(self, entity: str, path: Path, camera: Any) -> None:
        rr, log = self._rr, self._stream.log
        try:
            contents = path.read_bytes()
        except OSError:
            return  # a missing image: the frame policy has told about it
        log(entity, _transform(rr, invert_rigid(camera.lidar2camera)))
        log(
            entity,
            rr.Pinhole(image_from_camera=camera.intrinsic, camera_xyz=rr.ViewCoordinates.RDF),
        )
        media_type = _MEDIA_TYPES.get(path.suffix.lower())
        log(entity, rr.EncodedImage(contents=contents, media_type=media_type))

    def _boxes(self, entity: str, objects: Objects, truth: bool) -> None:
        rr, boxes = self._rr, objects.boxes
        half = boxes[:, 6] / 2
        turn = np.stack((0 * half, 0 * half, np.sin(half), np.cos(half)), axis=1)
        colours = [GROUND_TRUTH if truth else track_colour(int(i)) for i in objects.ids]
        labels = [objects.label(i) for i in range(len(objects))]
        shown = rr.Boxes3D(
            centers=boxes[:, :3],
            half_sizes=boxes[:, 3:6] / 2,  # w lies along the heading
            quaternions=turn,
            colors=colours,
            labels=labels,
        )
        self._stream.log(entity, shown)
        speed = np.nan_to_num(boxes[:, 7:10])
        arrows = rr.Arrows3D(origins=boxes[:, :3], vectors=speed, colors=colours)
        self._stream.log(f"{entity}/velocity", arrows)


def _transform(rr: Any, pose: Matrix) -> Any:
    return rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])
