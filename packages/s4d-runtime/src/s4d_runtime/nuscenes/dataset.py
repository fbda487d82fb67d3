"""A data set in nuScenes layout: its drives, and what belongs to each of their moments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from ..frame import Camera, Frame
from ..geometry import Matrix, invert_rigid, transform
from .annotations import AnnotationTables
from .records import CAMERA_ORDER, Annotations, CameraRecord, Sample, Scene
from .tables import (
    CalibrationRow,
    EgoPoseRow,
    SampleDataRow,
    SampleRow,
    SceneRow,
    SensorRow,
    read_table,
    rotation,
)

__all__ = ["CAMERA_ORDER", "NuScenes", "read_image"]

LIDAR = "LIDAR_TOP"


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
        return self._annotated.of(sample)

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
    def _annotated(self) -> AnnotationTables:
        times = {token: row.timestamp / 1e6 for token, row in self._samples.items()}
        return AnnotationTables(self.root / self.version, times)

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
            transform(rotation(calibration.rotation, calibration.token), calibration.translation),
            transform(rotation(pose.rotation, pose.token), pose.translation),
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


def _only_version(root: Path) -> str:
    found = sorted(p.parent.name for p in root.glob("*/sample_data.json"))
    if len(found) != 1:
        raise DatasetError(
            f"expected one folder of nuScenes tables (v1.0-*) in {root}, found "
            f"{', '.join(found) or 'none'}; name the version where there are several"
        )
    return found[0]
