"""The converted index: a folder of `.npy` columns and a JSON header, memory-mapped when opened.

Nothing in it is pickled. `index.json` holds the format number, the hash of the tables it was made
from, the column list and the small name tables. Columns are loaded on first use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s4d_train.errors import DataError, IndexFormatError

__all__ = ["COLUMNS", "INDEX_FORMAT", "DriveIndex", "write_index"]

INDEX_FORMAT = 1

Array = npt.NDArray[Any]

COLUMNS: dict[str, str] = {
    # S samples, N cameras, A annotations, W sweeps. Matrices are 4 x 4 float64 unless said.
    "token": "(S,) sample token",
    "timestamp": "(S,) int64 microseconds of the LiDAR",
    "scene": "(S,) int32 row of `scenes`",
    "frame": "(S,) int32 number within the scene",
    "lidar_file": "(S,) path below the root",
    "lidar2ego": "(S, 4, 4)",
    "ego2global": "(S, 4, 4) at the LiDAR's time",
    "camera_file": "(S, N) path below the root",
    "camera_timestamp": "(S, N) int64 microseconds",
    "camera_size": "(S, N, 2) int32 width, height",
    "camera_intrinsic": "(S, N, 3, 3) float64",
    "camera2ego": "(S, N, 4, 4)",
    "camera_ego2global": "(S, N, 4, 4) at the camera's time",
    "lidar2camera": "(S, N, 4, 4), through both ego poses",
    "annotation_start": "(S + 1,) int64 first row of a sample's annotations",
    "box": "(A, 7) float64 x y z size_x size_y size_z yaw, LiDAR frame",
    "velocity": "(A, 2) float64 m/s, LiDAR frame; NaN where unknown",
    "label": "(A,) int32 row of `classes`, -1 for what is none of them",
    "category": "(A,) int32 row of `categories`",
    "attribute": "(A,) int32 row of `attributes`, -1 for none",
    "visibility": "(A,) int32 1..4, 0 where unknown",
    "instance": "(A,) int32 number of the object, unique in the data set",
    "num_lidar_pts": "(A,) int32",
    "num_radar_pts": "(A,) int32",
    "sweep_start": "(S + 1,) int64 first row of a sample's sweeps, newest first",
    "sweep_file": "(W,) path below the root",
    "sweep_timestamp": "(W,) int64 microseconds",
    "sweep2lidar": "(W, 4, 4) into the sample's LiDAR frame",
}
"""Every column and its meaning."""


class DriveIndex:
    """A converted data set. Columns are attributes: ``index.box``, ``index.camera_file``..."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = folder
        self.version: str = header["version"]
        self.root = Path(header["root"])
        self.source_hash: str = header["source_hash"]
        self.cameras: list[str] = header["cameras"]
        self.classes: list[str] = header["classes"]
        self.categories: list[str] = header["categories"]
        self.attributes: list[str] = header["attributes"]
        self.scenes: list[str] = header["scenes"]
        self.splits: dict[str, list[str]] = header["splits"]
        self._shapes: dict[str, list[int]] = header["columns"]
        self._loaded: dict[str, Array] = {}

    @staticmethod
    def open(folder: str | Path) -> DriveIndex:
        """Open an index; IndexFormatError says what is wrong with it."""
        folder = Path(folder)
        path = folder / "index.json"
        try:
            header = json.loads(path.read_text())
        except FileNotFoundError:
            raise IndexFormatError(
                f"expected a converted index in {folder}, found no index.json; "
                "make one with `s4d-train convert`"
            ) from None
        except (ValueError, UnicodeDecodeError):
            raise IndexFormatError(f"{path} is not JSON; convert the data set again") from None
        found = header.get("format") if isinstance(header, dict) else None
        if found != INDEX_FORMAT:
            raise IndexFormatError(
                f"{folder} has index format {found}, this version reads {INDEX_FORMAT}; "
                "convert the data set again"
            )
        missing = [name for name in COLUMNS if name not in header.get("columns", {})]
        absent = [name for name in COLUMNS if not (folder / f"{name}.npy").is_file()]
        if missing or absent:
            raise IndexFormatError(
                f"{folder} lacks the columns {', '.join(missing or absent)}; "
                "convert the data set again"
            )
        return DriveIndex(folder, header)

    def __getattr__(self, name: str) -> Array:
        if name not in COLUMNS:
            raise AttributeError(name)
        if name not in self._loaded:
            path = self.folder / f"{name}.npy"
            try:
                column = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError:
                raise IndexFormatError(f"{path} is damaged; convert the data set again") from None
            if list(column.shape) != self._shapes[name]:
                raise IndexFormatError(
                    f"expected {path} of shape {self._shapes[name]}, found {list(column.shape)}; "
                    "convert the data set again"
                )
            self._loaded[name] = column
        return self._loaded[name]

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the files themselves.
        return {**self.__dict__, "_loaded": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return self._shapes["token"][0]

    def samples(self, split: str | None = None) -> npt.NDArray[np.int64]:
        """Rows of a split (``mini_train``, ``val``, ...; None = all), scene by scene in time."""
        order = np.lexsort((self.frame, self.scene))
        if split is None:
            return order
        if split not in self.splits:
            known = ", ".join(sorted(self.splits)) or "none"
            raise DataError(f"expected one of the splits {known} of {self.folder}, got {split!r}")
        names = set(self.splits[split])
        wanted = np.array([name in names for name in self.scenes], dtype=bool)
        return order[wanted[self.scene[order]]]

    def camera_columns(self, names: Sequence[str]) -> list[int]:
        """Positions of the named cameras in the camera columns."""
        unknown = [name for name in names if name not in self.cameras]
        if unknown:
            raise DataError(
                f"cameras {', '.join(unknown)} are not in {self.folder}; "
                f"it has {', '.join(self.cameras)}"
            )
        return [self.cameras.index(name) for name in names]

    def annotations(self, sample: int) -> slice:
        """Rows of the annotation columns that belong to a sample."""
        return slice(int(self.annotation_start[sample]), int(self.annotation_start[sample + 1]))

    def lidar2global(self, sample: int) -> npt.NDArray[np.float64]:
        """(4, 4) float64 pose of the LiDAR."""
        return np.asarray(self.ego2global[sample] @ self.lidar2ego[sample])


def write_index(folder: Path, header: dict[str, Any], columns: Mapping[str, Array]) -> None:
    """Write all columns and, last, the header into an existing empty folder."""
    for name in COLUMNS:
        np.save(folder / f"{name}.npy", np.ascontiguousarray(columns[name]), allow_pickle=False)
    shapes = {name: list(columns[name].shape) for name in COLUMNS}
    text = json.dumps({"format": INDEX_FORMAT, **header, "columns": shapes}, indent=1)
    (folder / "index.json").write_text(text)
