"""Read the JSON tables of a nuScenes data set as columns, in parallel, without the devkit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from s4d_train.errors import DataError, MissingTableError
from s4d_train.processes import in_processes

__all__ = ["TABLES", "Columns", "read_tables"]

Columns = dict[str, npt.NDArray[Any]]
"""Column name to array; strings are fixed-width bytes (``S``)."""

_Quaternion = tuple[float, float, float, float]
_Vector = tuple[float, float, float]


class _Scene(msgspec.Struct, gc=False):
    token: str
    name: str
    first_sample_token: str


class _Sample(msgspec.Struct, gc=False):
    token: str
    timestamp: int
    scene_token: str
    next: str


class _SampleData(msgspec.Struct, gc=False):
    token: str
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    timestamp: int
    is_key_frame: bool
    height: int
    width: int
    filename: str
    prev: str


class _EgoPose(msgspec.Struct, gc=False):
    token: str
    rotation: _Quaternion
    translation: _Vector


class _Calibrated(msgspec.Struct, gc=False):
    token: str
    sensor_token: str
    rotation: _Quaternion
    translation: _Vector
    camera_intrinsic: list[list[float]]


class _Sensor(msgspec.Struct, gc=False):
    token: str
    channel: str
    modality: str


class _Annotation(msgspec.Struct, gc=False):
    token: str
    sample_token: str
    instance_token: str
    visibility_token: str
    attribute_tokens: list[str]
    translation: _Vector
    size: _Vector
    rotation: _Quaternion
    prev: str
    next: str
    num_lidar_pts: int
    num_radar_pts: int


class _Instance(msgspec.Struct, gc=False):
    token: str
    category_token: str


class _Named(msgspec.Struct, gc=False):
    token: str
    name: str


TABLES: dict[str, type[msgspec.Struct]] = {
    # The largest come first, so that a worker starts on them at once.
    "sample_data": _SampleData,
    "ego_pose": _EgoPose,
    "sample_annotation": _Annotation,
    "instance": _Instance,
    "sample": _Sample,
    "scene": _Scene,
    "calibrated_sensor": _Calibrated,
    "sensor": _Sensor,
    "category": _Named,
    "attribute": _Named,
}
"""Tables that the conversion needs; visibility, log and map are not read."""

_CONVERT: dict[str, Callable[[Any], Any]] = {
    "attribute_tokens": lambda tokens: tokens[0] if tokens else "",
    "camera_intrinsic": lambda rows: rows if rows else np.eye(3).tolist(),
}


def _column(values: list[Any]) -> npt.NDArray[Any]:
    if values and isinstance(values[0], str):
        return np.array([v.encode() for v in values], dtype=np.bytes_)
    return np.array(values)


def _read(task: tuple[str, str]) -> tuple[str, Columns, str]:
    """One table: its name, its columns, the SHA-256 of its file."""
    folder, name = task
    path = Path(folder) / f"{name}.json"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise MissingTableError(
            f"expected the table {path}, found no such file; "
            "give the folder that holds the version folder, and check the version"
        ) from None
    digest = hashlib.sha256(raw).hexdigest()
    struct = TABLES[name]
    try:
        rows = msgspec.json.decode(raw, type=list[struct])  # type: ignore[valid-type]
    except msgspec.DecodeError as error:
        raise MissingTableError(
            f"{path} is not a nuScenes table ({error}); fetch the file again"
        ) from None
    del raw
    columns = {}
    for field in struct.__struct_fields__:
        change = _CONVERT.get(field)
        values = [getattr(row, field) for row in rows]
        columns[field] = _column([change(v) for v in values] if change else values)
    return name, columns, digest


def read_tables(folder: Path, workers: int) -> Iterator[tuple[str, Columns, str]]:
    """Yield (name, columns, SHA-256) of every table of TABLES as they become ready.

    MissingTableError names a table that is absent or not what it should be.
    """
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in folder.parent.glob("v*-*") if p.is_dir()))
        raise MissingTableError(
            f"expected the folder of tables {folder}, found {there or 'no such folder'}; "
            "check the data set's folder and --version"
        )
    tasks = [(str(folder), name) for name in TABLES]
    for _, name in tasks:  # all names are checked before minutes of reading start
        if not (folder / f"{name}.json").is_file():
            raise MissingTableError(
                f"expected the table {folder / name}.json, found no such file; "
                "the data set is not complete"
            )
    try:
        yield from in_processes(_read, tasks, min(workers, 3))
    except MemoryError:
        raise DataError("the tables do not fit in memory; convert with --workers 1") from None
