"""nuScenes tables to the columns of :mod:`s4d_train.data.index`."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from s4d_train.errors import DataError, MissingFileError

from .annotations import add_annotations
from .config import CAMERA_NAMES, CLASS_NAMES
from .index import DriveIndex, write_index
from .layout import find_version, find_versions
from .lookup import Lookup, texts
from .poses import inverse, pose_matrices
from .source import TABLES, Columns, read_tables

__all__ = ["check_files", "convert", "convert_all"]

Array = npt.NDArray[Any]


def convert(
    root: str | Path,
    out: str | Path,
    version: str | None = None,
    *,
    max_sweeps: int = 10,
    workers: int | None = None,
    files: bool = False,
    progress: bool = True,
    line: int | None = None,
) -> DriveIndex:
    """Convert the nuScenes data set in ``root`` and write the index folder ``out``.

    Args:
        root: folder of the data set (``samples/`` and the tables' folder lie in it).
        out: replaced when it holds an index.
        version: folder of the tables, such as ``v1.0-mini``; None: the only one there.
        max_sweeps: earlier LiDAR sweeps that are listed for each sample.
        workers: processes that read tables; None: one per core.
        files: check too that every file that a sample names exists.
        progress: draw a progress bar.
        line: of the progress bar, where several are drawn; None: the present one.

    Raises:
        MissingTableError: a table is missing, or the version is not clear.
        MissingFileError: ``files``, and one is not there.
        DataError: a table is damaged, or ``out`` holds something else.
    """
    root, out = Path(root), Path(out)
    version = version or find_version(root)
    if out.exists() and any(out.iterdir()) and not (out / "index.json").is_file():
        raise DataError(f"{out} exists and is not an index; give another folder")
    tables: dict[str, Columns] = {}
    digest: dict[str, str] = {}
    steps = len(TABLES) + 4 + int(files)
    label = f"convert {version}"
    with tqdm(total=steps, unit="step", desc=label, disable=not progress, position=line) as bar:
        for name, columns, sha in read_tables(root / version, workers or os.cpu_count() or 1):
            tables[name], digest[name] = columns, sha
            bar.update()
        columns, scenes = _samples(tables)
        bar.update()
        cameras = _sensors(tables, columns, max_sweeps)
        bar.update()
        instances = add_annotations(tables, columns)
        bar.update()
        combined = "".join(digest[name] for name in sorted(digest))
        header = {
            "version": version,
            "root": str(root.resolve()),
            "source_hash": hashlib.sha256(combined.encode()).hexdigest(),
            "cameras": cameras,
            "classes": list(CLASS_NAMES),
            "categories": texts(tables["category"]["name"]),
            "attributes": texts(tables["attribute"]["name"]),
            "scenes": scenes,
            "splits": _splits(scenes),
            "instances": instances,
        }
        work = out.with_name(out.name + ".partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_index(work, header, columns)
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
        bar.update()
        index = DriveIndex.open(out)
        if files:
            check_files(index)
            bar.update()
    return index


def convert_all(root: str | Path, out: str | Path, **options: Any) -> list[DriveIndex]:
    """Convert every version in ``root`` at once, each into the folder of its name in ``out``.

    ``options`` and errors are those of :func:`convert`, without ``version`` and ``line``.
    """
    versions = find_versions(root)
    with ThreadPoolExecutor(len(versions)) as pool:  # the work is in each one's processes
        jobs = [
            pool.submit(convert, root, Path(out) / name, name, line=line, **options)
            for line, name in enumerate(versions)
        ]
        return [job.result() for job in jobs]


def check_files(index: DriveIndex, root: str | Path | None = None) -> int:
    """Check that every image and point file exists; returns how many; MissingFileError if not."""
    root = Path(root) if root else index.root
    names = [*index.camera_file.ravel(), *index.lidar_file, *index.sweep_file]
    present: dict[str, set[str]] = {}
    missing = []
    for name in {n.decode() for n in names if n}:
        folder, _, file = name.rpartition("/")
        if folder not in present:
            path = root / folder
            present[folder] = set(os.listdir(path)) if path.is_dir() else set()
        if file not in present[folder]:
            missing.append(name)
    if missing:
        raise MissingFileError(
            f"expected {len(names)} files below {root}, of which {len(missing)} are missing, first "
            f"{min(missing)}; complete the data set or give its folder"
        )
    return len(names)


def _samples(tables: dict[str, Columns]) -> tuple[Columns, list[str]]:
    """Sample columns ordered by scene and time, and the scene names."""
    sample, scene = tables["sample"], tables["scene"]
    if not len(sample["token"]):
        raise DataError("the sample table is empty; check the version")
    scene_row = Lookup(scene["token"]).rows(sample["scene_token"], "scene")
    order = np.lexsort((sample["timestamp"], scene_row))
    row = scene_row[order]
    first = np.searchsorted(row, row)
    columns = {
        "token": sample["token"][order],
        "timestamp": sample["timestamp"][order].astype(np.int64),
        "scene": row.astype(np.int32),
        "frame": (np.arange(len(row)) - first).astype(np.int32),
    }
    return columns, texts(scene["name"])


def _sensors(tables: dict[str, Columns], columns: Columns, max_sweeps: int) -> list[str]:
    """Add LiDAR, camera and sweep columns; returns the camera names."""
    data, calibrated, sensor = (tables[n] for n in ("sample_data", "calibrated_sensor", "sensor"))
    sensor_of = Lookup(sensor["token"]).rows(calibrated["sensor_token"], "sensor")
    calibration = Lookup(calibrated["token"]).rows(
        data["calibrated_sensor_token"], "calibrated sensor"
    )
    channel = sensor["channel"][sensor_of][calibration]
    modality = sensor["modality"][sensor_of][calibration]
    sample = Lookup(columns["token"]).find(data["sample_token"])
    poses = Lookup(tables["ego_pose"]["token"])
    count = len(columns["token"])

    def ego2global(rows: Array) -> Array:
        at = poses.rows(data["ego_pose_token"][rows], "ego pose")
        ego = tables["ego_pose"]
        return pose_matrices(ego["rotation"][at], ego["translation"][at])

    def sensor2ego(rows: Array) -> Array:
        at = calibration[rows]
        return pose_matrices(calibrated["rotation"][at], calibrated["translation"][at])

    def key_rows(name: str) -> Array:
        rows = np.flatnonzero((channel == name.encode()) & data["is_key_frame"] & (sample >= 0))
        result = np.full(count, -1)
        result[sample[rows]] = rows
        if (result < 0).any():
            token = columns["token"][int(np.argmax(result < 0))].decode()
            raise DataError(f"sample {token} has no key frame of {name}")
        return result

    lidar = key_rows("LIDAR_TOP")
    columns["lidar_file"] = data["filename"][lidar]
    columns["lidar2ego"] = sensor2ego(lidar)
    columns["ego2global"] = ego2global(lidar)
    global2lidar = inverse(columns["ego2global"] @ columns["lidar2ego"])

    present = set(texts(np.unique(channel[modality == b"camera"])))
    cameras = [name for name in CAMERA_NAMES if name in present]
    cameras += sorted(present - set(CAMERA_NAMES))
    rows = np.stack([key_rows(name) for name in cameras], 1) if cameras else None
    if rows is None:
        raise DataError("the data set has no camera")
    flat = rows.ravel()
    shape = rows.shape
    columns["camera_file"] = data["filename"][flat].reshape(shape)
    columns["camera_timestamp"] = data["timestamp"][flat].reshape(shape).astype(np.int64)
    size = np.stack([data["width"][flat], data["height"][flat]], -1)
    columns["camera_size"] = size.reshape(*shape, 2).astype(np.int32)
    intrinsic = calibrated["camera_intrinsic"][calibration[flat]]
    columns["camera_intrinsic"] = intrinsic.reshape(*shape, 3, 3).astype(np.float64)
    columns["camera2ego"] = sensor2ego(flat).reshape(*shape, 4, 4)
    columns["camera_ego2global"] = ego2global(flat).reshape(*shape, 4, 4)
    camera2global = columns["camera_ego2global"] @ columns["camera2ego"]
    columns["lidar2camera"] = inverse(camera2global) @ inverse(global2lidar)[:, None]

    _sweeps(data, lidar, max_sweeps, columns)
    sweep, owner = columns.pop("_sweep_row"), columns.pop("_sweep_sample")
    pose = ego2global(sweep) @ sensor2ego(sweep)
    columns["sweep2lidar"] = global2lidar[owner] @ pose
    return cameras


def _sweeps(data: Columns, lidar: Array, most: int, columns: Columns) -> None:
    """Up to ``most`` LiDAR readings before each key frame, newest first."""
    before = Lookup(data["token"])
    rows, owners = [], []
    current, sample = lidar, np.arange(len(lidar))
    for _ in range(most):
        previous = before.find(data["prev"][current])
        sample, current = sample[previous >= 0], previous[previous >= 0]
        rows.append(current)
        owners.append(sample)
    row = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    owner = np.concatenate(owners) if owners else np.zeros(0, dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    row, owner = row[order], owner[order]
    columns["_sweep_row"], columns["_sweep_sample"] = row, owner
    columns["sweep_start"] = np.searchsorted(owner, np.arange(len(lidar) + 1)).astype(np.int64)
    columns["sweep_file"] = data["filename"][row]
    columns["sweep_timestamp"] = data["timestamp"][row].astype(np.int64)


def _splits(scenes: list[str]) -> dict[str, list[str]]:
    """The devkit's splits that have a scene here."""
    from nuscenes.utils.splits import create_splits_scenes

    names = set(scenes)
    return {
        split: present
        for split, members in create_splits_scenes().items()
        if (present := [name for name in members if name in names])
    }
