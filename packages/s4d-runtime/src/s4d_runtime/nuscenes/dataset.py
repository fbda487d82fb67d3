"""Scenes, samples, cameras and annotations of a data set in nuScenes layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..frame import Camera, Frame
from ..geometry import Matrix, invert_rigid, quaternion_to_matrix, transform
from .classes import DETECTION_NAMES, detection_name
from .tables import (
    AnnotationRow,
    CalibrationRow,
    EgoPoseRow,
    InstanceRow,
    NamedRow,
    SampleDataRow,
    SampleRow,
    SceneRow,
    SensorRow,
    read_table,
)

__all__ = ["CAMERA_ORDER", "Annotations", "CameraRecord", "NuScenes", "Sample", "Scene"]

LIDAR = "LIDAR_TOP"
MAX_VELOCITY_INTERVAL = 1.5  # seconds between two annotations that still give a velocity
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


@dataclass
class _Annotated:
    """The annotation tables, read only when they are asked for."""

    rows: dict[str, AnnotationRow]
    by_sample: dict[str, list[AnnotationRow]]
    categories: dict[str, str]  # instance token to category name
    numbers: dict[str, int] = field(default_factory=dict)  # instance token to row number


class NuScenes:
    """A data set in nuScenes layout (``ROOT/v1.0-*/*.json``, ``ROOT/samples/...``).

    Attributes:
        root: the folder.
        version: name of the folder with the tables.
        scenes: the drives, by name.
    """

    def __init__(self, root: str | Path, version: str | None = None) -> None:
        """Read the tables; images are read one by one later.

        Args:
            root: the data set's folder.
            version: ``v1.0-mini``, ``v1.0-trainval``...; may be left out if there is only one.

        Raises:
            DatasetError: no tables, more than one version to choose from, or a broken table.
        """
        self.root = Path(root)
        self.version = version or _only_version(self.root)
        if not (self.root / self.version).is_dir():
            raise DatasetError(f"expected a folder {self.version!r} with tables in {self.root}")
        sensors = {r.token: r for r in self._table("sensor", SensorRow)}
        self._calibrations = {r.token: r for r in self._table("calibrated_sensor", CalibrationRow)}
        self._channels = {
            token: sensors[row.sensor_token].channel
            for token, row in self._calibrations.items()
            if row.sensor_token in sensors
            and (
                sensors[row.sensor_token].modality == "camera"
                or sensors[row.sensor_token].channel == LIDAR
            )
        }
        self._samples = {r.token: r for r in self._table("sample", SampleRow)}
        self._data = self._keyframe_data()
        needed = {row.ego_pose_token for rows in self._data.values() for row in rows.values()}
        poses = read_table(self._path("ego_pose"), EgoPoseRow, lambda r: r.token in needed)
        self._poses = {r.token: r for r in poses}
        self._scene_names: dict[str, str] = {}
        self.scenes = self._order_scenes()

    def sample(self, token: str) -> Sample:
        """Poses, files and calibrations of one keyframe.

        Raises:
            DatasetError: unknown token, or a record that it needs is missing.
        """
        row = self._samples.get(token)
        if row is None:
            raise DatasetError(f"{self.version} has no sample {token!r}")
        data = self._data.get(token, {})
        if LIDAR not in data:
            raise DatasetError(f"sample {token!r} has no {LIDAR} keyframe, which gives its pose")
        lidar = data[LIDAR]
        lidar2ego, ego2global = self._sensor_pose(lidar)
        lidar2global = ego2global @ lidar2ego
        cameras = {}
        for channel, record in data.items():
            if channel == LIDAR:
                continue
            # Through the world: the vehicle moves between the sweep and the image.
            camera2ego, ego2global_then = self._sensor_pose(record)
            world2camera = invert_rigid(camera2ego) @ invert_rigid(ego2global_then)
            cameras[channel] = CameraRecord(
                self.root / record.filename,
                record.timestamp / 1e6,
                self._intrinsic(record),
                world2camera @ lidar2global,
            )
        return Sample(
            token,
            row.timestamp / 1e6,
            self._scene_names.get(row.scene_token, ""),
            lidar2ego,
            ego2global,
            self.root / lidar.filename,
            cameras,
        )

    def frame(self, sample: Sample | str, cameras: Sequence[str] = CAMERA_ORDER) -> Frame:
        """The pipeline's input for a sample: images are decoded here.

        Args:
            sample: a sample or its token.
            cameras: names in the order that the model wants. A camera that the sample does not
                have, or whose file is absent, becomes None; the frame policy decides about it.

        Raises:
            DatasetError: an image file is there but is not an image.
        """
        sample = self.sample(sample) if isinstance(sample, str) else sample
        records = [sample.cameras.get(name) for name in cameras]
        return Frame(
            images=[None if r is None else read_image(r.path) for r in records],
            timestamp=sample.timestamp,
            lidar2global=sample.lidar2global,
            cameras=[
                None if r is None else Camera(r.intrinsic, r.lidar2camera)  # type: ignore[misc]
                for r in records
            ],
        )

    def annotations(self, sample: Sample | str) -> Annotations:
        """Annotated objects in the sample's LiDAR frame.

        Raises:
            DatasetError: a table is missing (test splits have no annotations), or a record.
        """
        sample = self.sample(sample) if isinstance(sample, str) else sample
        tables = self._annotated
        rows = tables.by_sample.get(sample.token, [])
        world2lidar = invert_rigid(sample.lidar2global)
        boxes = np.zeros((len(rows), 10))
        for i, row in enumerate(rows):
            rotation = world2lidar[:3, :3] @ _rotation(row.rotation, row.token)
            boxes[i, :3] = world2lidar[:3, :3] @ np.array(row.translation) + world2lidar[:3, 3]
            width, length, height = row.size
            boxes[i, 3:6] = length, width, height  # column w lies along the heading
            boxes[i, 6] = np.arctan2(rotation[1, 0], rotation[0, 0])
            boxes[i, 7:9] = (world2lidar[:3, :3] @ self._velocity(row))[:2]
        names = [tables.categories.get(r.instance_token, "") for r in rows]
        classes = [detection_name(n) for n in names]
        return Annotations(
            boxes,
            np.array([-1 if c is None else DETECTION_NAMES.index(c) for c in classes], np.int64),
            tuple(names),
            np.array([tables.numbers.get(r.instance_token, -1) for r in rows], np.int64),
            tuple(r.token for r in rows),
            np.array([r.num_lidar_pts + r.num_radar_pts for r in rows], np.int64),
        )

    def select(self, names: Iterable[str] | None) -> list[Scene]:
        """The scenes of these names, in the data set's order; all for None.

        Raises:
            DatasetError: a name that is not there.
        """
        if names is None:
            return list(self.scenes)
        wanted = set(names)
        found = [s for s in self.scenes if s.name in wanted]
        if missing := sorted(wanted - {s.name for s in found}):
            known = ", ".join(s.name for s in self.scenes[:10])
            raise DatasetError(f"no scene {', '.join(missing)}; there are {known}...")
        return found

    @cached_property
    def _annotated(self) -> _Annotated:
        rows = read_table(self._path("sample_annotation"), AnnotationRow)
        instances = self._table("instance", InstanceRow)
        names = {r.token: r.name for r in self._table("category", NamedRow)}
        by_sample: dict[str, list[AnnotationRow]] = {}
        for row in rows:
            by_sample.setdefault(row.sample_token, []).append(row)
        return _Annotated(
            {r.token: r for r in rows},
            by_sample,
            {r.token: names.get(r.category_token, "") for r in instances},
            {r.token: number for number, r in enumerate(instances)},
        )

    def _velocity(self, row: AnnotationRow) -> NDArray[np.float64]:
        """World velocity (3,) by the difference of the neighbouring annotations; else NaN."""
        rows = self._annotated.rows
        before, after = rows.get(row.prev, row), rows.get(row.next, row)
        if before is after:
            return np.full(3, np.nan)
        times = [self._samples[r.sample_token].timestamp / 1e6 for r in (before, after)]
        interval = times[1] - times[0]
        both = before is not row and after is not row
        if not 0 < interval <= MAX_VELOCITY_INTERVAL * (2 if both else 1):
            return np.full(3, np.nan)
        moved = np.array(after.translation) - np.array(before.translation)
        return np.asarray(moved / interval)

    def _keyframe_data(self) -> dict[str, dict[str, SampleDataRow]]:
        channels = self._channels
        rows = read_table(
            self._path("sample_data"),
            SampleDataRow,
            lambda r: r.is_key_frame and r.calibrated_sensor_token in channels,
        )
        data: dict[str, dict[str, SampleDataRow]] = {}
        for row in rows:
            data.setdefault(row.sample_token, {})[channels[row.calibrated_sensor_token]] = row
        return data

    def _order_scenes(self) -> list[Scene]:
        members: dict[str, list[SampleRow]] = {}
        for row in self._samples.values():
            members.setdefault(row.scene_token, []).append(row)
        scenes = []
        for scene in self._table("scene", SceneRow):
            self._scene_names[scene.token] = scene.name
            rows = sorted(members.get(scene.token, []), key=lambda r: r.timestamp)
            tokens = tuple(r.token for r in rows)
            scenes.append(Scene(scene.token, scene.name, scene.description, tokens))
        return sorted(scenes, key=lambda s: s.name)

    def _sensor_pose(self, record: SampleDataRow) -> tuple[Matrix, Matrix]:
        """sensor2ego and ego2global at the record's own time."""
        calibration = self._calibrations[record.calibrated_sensor_token]
        pose = self._poses.get(record.ego_pose_token)
        if pose is None:
            raise DatasetError(
                f"sample_data {record.token!r} refers to ego_pose {record.ego_pose_token!r}, "
                "which is not there"
            )
        return (
            transform(_rotation(calibration.rotation, calibration.token), calibration.translation),
            transform(_rotation(pose.rotation, pose.token), pose.translation),
        )

    def _intrinsic(self, record: SampleDataRow) -> Matrix:
        row = self._calibrations[record.calibrated_sensor_token]
        try:
            matrix = np.array(row.camera_intrinsic, dtype=np.float64)
        except ValueError:
            matrix = np.empty(0)
        if matrix.shape != (3, 3):
            raise DatasetError(
                f"expected calibrated_sensor {row.token!r} with a (3, 3) camera_intrinsic, "
                f"got {row.camera_intrinsic!r:.80}"
            )
        return matrix

    def _path(self, table: str) -> Path:
        return self.root / self.version / f"{table}.json"

    def _table(self, name: str, row: type) -> list:  # type: ignore[type-arg]
        return read_table(self._path(name), row)


def read_image(path: Path) -> NDArray[np.uint8] | None:
    """(H, W, 3) uint8 RGB of an image file; None if there is no such file.

    Raises:
        DatasetError: the file cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path.name} is not an image that can be decoded: {error}") from None


def _rotation(q: Sequence[float], token: str) -> Matrix:
    try:
        return quaternion_to_matrix(q)
    except ValueError as error:
        raise DatasetError(f"record {token!r}: {error}") from None


def _only_version(root: Path) -> str:
    found = sorted(p.parent.name for p in root.glob("*/sample_data.json"))
    if len(found) != 1:
        raise DatasetError(
            f"expected one folder of nuScenes tables (v1.0-*) in {root}, found "
            f"{', '.join(found) or 'none'}; name the version where there are several"
        )
    return found[0]
