"""Write a synthetic data set in nuScenes layout."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from s4d_ops import S4DError

from .camera import render
from .geometry import Array, matrix_to_quaternion, yaw_matrix
from .objects import KINDS
from .rig import LIDAR, cameras
from .scan import cast
from .scene import Scene
from .tables import Tables, scene_names, token

__all__ = ["SynthConfig", "SynthError", "generate"]

_CHUNK = 10
"""Key frames per task."""
_RANGE = 80.0
"""Objects farther than this from the car are not annotated, metres."""
_BASE_STAMP = 1_600_000_000_000_000


class SynthError(S4DError):
    """A synthetic data set that cannot be written as asked."""


@dataclass(frozen=True)
class SynthConfig:
    """What to generate."""

    scenes: int
    seed: int = 0
    image_size: tuple[int, int] = (800, 450)
    """Width, height in pixels."""
    frames: int = 40
    """Key frames per scene, two per second."""
    split: str = "auto"
    """"mini", "trainval", or "auto": mini up to ten scenes."""
    val_scenes: int | None = None
    """How many of the scenes are for validation; a fifth by default, at least one."""
    sweeps: int = 0
    """LiDAR sweeps between two key frames."""
    density: float = 1.0
    """Factor on the number of objects."""
    jpeg_quality: int = 90

    def names(self) -> list[str]:
        """Scene names, training first."""
        if self.scenes < 1 or self.frames < 1 or self.sweeps < 0:
            raise SynthError(
                f"expected at least one scene, one frame and no negative sweeps, got "
                f"{self.scenes}, {self.frames} and {self.sweeps}; give positive numbers"
            )
        if min(self.image_size) < 32:
            raise SynthError(
                f"expected images of at least 32 x 32 pixels, got {self.image_size}; "
                "give a larger --image-size"
            )
        val = self.val_scenes
        if val is None:
            val = max(1, round(0.2 * self.scenes))
        if not 0 <= val <= self.scenes:
            raise SynthError(f"expected 0 to {self.scenes} validation scenes, got {val}")
        try:
            return scene_names(self.layout, self.scenes - val, val)
        except ValueError as error:
            raise SynthError(str(error)) from None

    @property
    def layout(self) -> str:
        if self.split == "auto":
            return "mini" if self.scenes <= 10 else "trainval"
        if self.split not in ("mini", "trainval"):
            raise SynthError(f"expected split mini, trainval or auto, got {self.split!r}")
        return self.split

    @property
    def version(self) -> str:
        """Name of the folder of tables."""
        return f"v1.0-{self.layout}"


def generate(
    out: str | Path, config: SynthConfig, workers: int | None = None, progress: bool = True
) -> Path:
    """Write the data set to the folder ``out``, which must not exist or be empty.

    The content is a function of ``config`` alone, whatever ``workers`` is (default: one process
    per core). Everything is written beside ``out`` and renamed at the end.
    """
    names = config.names()
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SynthError(f"{out} exists and is not an empty folder; remove it or give another one")
    work = out.with_name(out.name + ".partial")
    if work.exists():
        shutil.rmtree(work)
    rig = cameras(*config.image_size)
    for folder in [c.name for c in rig] + ["LIDAR_TOP"]:
        (work / "samples" / folder).mkdir(parents=True)
    if config.sweeps:
        (work / "sweeps" / "LIDAR_TOP").mkdir(parents=True)

    tasks = [
        (config, str(work), name, first)
        for name in names
        for first in range(0, config.frames, _CHUNK)
    ]
    frames: dict[str, list[_Frame]] = {name: [] for name in names}
    total = len(names) * config.frames
    with tqdm(total=total, unit="frame", disable=not progress, desc="synth") as bar:
        for name, part in _run(tasks, workers):
            frames[name] += part
            bar.update(len(part))
    tables = Tables(config.seed, rig)
    for number, name in enumerate(names):
        ordered = sorted(frames[name], key=lambda f: f.index)
        _tabulate(tables, config, name, _stamp(number, 0), ordered)
    _write_tables(work, config, tables)
    if out.exists():
        out.rmdir()
    os.replace(work, out)
    return out


@dataclass(frozen=True)
class _Frame:
    """What a worker reports of one key frame."""

    index: int
    poses: Array
    """(actors, 3)"""
    visible: Array
    """(actors,) share of the pixels that are seen; -1 where none would be."""
    hits: npt.NDArray[np.int64]
    """(actors,) LiDAR points."""
    attributes: list[str]
    kinds: list[str]
    sizes: list[tuple[float, float, float]]
    distance: Array
    """(actors,) metres from the car."""
    ego: dict[str, Array]
    """Ego pose (4, 4) per sensor, in the map's frame."""
    swept: list[tuple[int, Array]]
    """Microseconds after the previous key frame and ego pose of the sweeps before this one."""


def _stamp(scene_number: int, frame: int) -> int:
    return _BASE_STAMP + scene_number * 600_000_000 + frame * 500_000


def _run(tasks: list[Any], workers: int | None) -> Iterator[tuple[str, list[_Frame]]]:
    count = min(workers or os.cpu_count() or 1, len(tasks))
    if count <= 1:
        yield from map(_work, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        yield from pool.imap_unordered(_work, tasks)


def _work(task: tuple[SynthConfig, str, str, int]) -> tuple[str, list[_Frame]]:
    """Render up to _CHUNK key frames of one scene."""
    config, folder, name, first = task
    number = int(name[-4:])
    scene_number = config.names().index(name)
    seed = np.random.SeedSequence([config.seed, number])
    scene = Scene(seed, 0.5 * config.frames, config.density)
    origin = np.random.default_rng([config.seed, number, 7]).uniform(300.0, 2000.0, 2)
    last = min(first + _CHUNK, config.frames)
    frames = [
        _frame(config, Path(folder), scene, origin, name, scene_number, index)
        for index in range(first, last)
    ]
    return name, frames


def _frame(
    config: SynthConfig,
    folder: Path,
    scene: Scene,
    origin: Array,
    name: str,
    scene_number: int,
    index: int,
) -> _Frame:
    number = int(name[-4:])
    time = 0.5 * index
    stamp = _stamp(scene_number, index)
    rng = np.random.default_rng([config.seed, number, index])
    actors = len(scene.actors)
    ego = {"LIDAR_TOP": _on_map(scene.ego_to_town(time), origin)}

    faces = scene.faces(time)
    sweep = cast(scene.parts(faces), LIDAR, scene.ego_to_town(time) @ LIDAR.to_ego, rng)
    _save_points(folder / _file("LIDAR_TOP", stamp, name), sweep.points)
    hits = np.bincount(sweep.actor[sweep.actor >= 0], minlength=actors)

    swept = []
    for k in range(config.sweeps if index else 0):
        before = 500_000 * (config.sweeps - k) // (config.sweeps + 1)
        moment = time - before * 1e-6
        pose = scene.ego_to_town(moment)
        between = cast(scene.parts(scene.faces(moment)), LIDAR, pose @ LIDAR.to_ego, rng)
        _save_points(folder / _file("LIDAR_TOP", stamp - before, name, "sweeps"), between.points)
        swept.append((stamp - before, _on_map(pose, origin)))

    visible = np.zeros(actors, dtype=np.int64)
    covered = np.zeros(actors, dtype=np.int64)
    for camera in cameras(*config.image_size):
        moment = time + camera.delay
        pose = scene.ego_to_town(moment)
        view = render(
            scene.faces(moment),
            actors,
            scene.town,
            scene.light,
            scene.noise,
            camera,
            pose @ camera.to_ego,
            rng,
        )
        ego[camera.name] = _on_map(pose, origin)
        visible += view.visible
        covered += view.covered
        path = folder / _file(camera.name, stamp + round(camera.delay * 1e6), name)
        Image.fromarray(view.image).save(path, quality=config.jpeg_quality)

    poses = scene.poses(time)
    here = scene.ego.at(time)
    share = np.where(covered > 0, visible / np.maximum(covered, 1), -1.0)
    poses_on_map = poses + np.array([*origin, 0.0])
    return _Frame(
        index,
        poses_on_map,
        share,
        hits,
        [a.attribute(time) for a in scene.actors],
        [a.name for a in scene.actors],
        [a.size for a in scene.actors],
        np.hypot(*(poses[:, :2] - here[:2]).T),
        ego,
        swept,
    )


def _on_map(pose: Array, origin: Array) -> Array:
    moved = pose.copy()
    moved[:2, 3] += origin
    return moved


def _file(sensor: str, stamp: int, scene: str, folder: str = "samples") -> str:
    ending = "pcd.bin" if sensor == "LIDAR_TOP" else "jpg"
    return f"{folder}/{sensor}/s4d-synth-{scene}__{sensor}__{stamp}.{ending}"


def _save_points(path: Path, points: np.ndarray) -> None:
    path.write_bytes(np.ascontiguousarray(points, dtype="<f4").tobytes())


def _tabulate(
    tables: Tables, config: SynthConfig, name: str, start: int, frames: list[_Frame]
) -> None:
    rig = cameras(*config.image_size)
    log = tables.add_log(name, rig)
    rows = tables.rows
    before = len(rows["sample_data"])
    samples = [token(config.seed, name, "sample", f.index) for f in frames]
    for frame, sample in zip(frames, samples, strict=True):
        stamp = start + frame.index * 500_000
        rows["sample"].append(
            {
                "token": sample,
                "timestamp": stamp,
                "prev": "",
                "next": "",
                "scene_token": token(config.seed, name),
            }
        )
        for swept, pose in frame.swept:
            tables.add_data(
                name,
                "LIDAR_TOP",
                sample,
                swept,
                _file("LIDAR_TOP", swept, name, "sweeps"),
                pose,
                (0, 0),
                False,
            )
        tables.add_data(
            name,
            "LIDAR_TOP",
            sample,
            stamp,
            _file("LIDAR_TOP", stamp, name),
            frame.ego["LIDAR_TOP"],
            (0, 0),
        )
        for camera in rig:
            taken = stamp + round(camera.delay * 1e6)
            tables.add_data(
                name,
                camera.name,
                sample,
                taken,
                _file(camera.name, taken, name),
                frame.ego[camera.name],
                config.image_size,
            )
    tables.chain(rows["sample"][-len(frames) :])
    for sensor in [c.name for c in rig] + ["LIDAR_TOP"]:
        calibrated = token(config.seed, name, "calibrated", sensor)
        tables.chain(
            [r for r in rows["sample_data"][before:] if r["calibrated_sensor_token"] == calibrated]
        )
    rows["scene"].append(
        {
            "token": token(config.seed, name),
            "log_token": log,
            "nbr_samples": len(frames),
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": name,
            "description": "synthetic street",
        }
    )
    for actor in range(len(frames[0].kinds)):
        _annotate(tables, config, name, frames, samples, actor)


def _annotate(
    tables: Tables,
    config: SynthConfig,
    name: str,
    frames: list[_Frame],
    samples: list[str],
    actor: int,
) -> None:
    """One instance: every frame in range from the first to the last time it was sensed."""
    near = [k for k, f in enumerate(frames) if f.distance[actor] < _RANGE]
    sensed = [k for k in near if frames[k].hits[actor] > 0 or frames[k].visible[actor] > 0.0]
    if not sensed:
        return
    instance = token(config.seed, name, "instance", actor)
    rows = []
    for k in near:
        if not sensed[0] <= k <= sensed[-1]:
            continue
        frame = frames[k]
        length, width, height = frame.sizes[actor]
        x, y, heading = frame.poses[actor]
        level = 1 + int(np.searchsorted([0.4, 0.6, 0.8], frame.visible[actor], side="right"))
        attribute = frame.attributes[actor]
        rows.append(
            {
                "token": token(instance, k),
                "sample_token": samples[k],
                "instance_token": instance,
                "visibility_token": str(level),
                "attribute_tokens": [token("attribute", attribute)] if attribute else [],
                "translation": [float(x), float(y), height / 2],
                "size": [width, length, height],
                "rotation": matrix_to_quaternion(yaw_matrix(float(heading))),
                "prev": "",
                "next": "",
                "num_lidar_pts": int(frame.hits[actor]),
                "num_radar_pts": 0,
            }
        )
    tables.chain(rows)
    tables.rows["sample_annotation"] += rows
    tables.rows["instance"].append(
        {
            "token": instance,
            "category_token": token("category", KINDS[frames[0].kinds[actor]].category),
            "nbr_annotations": len(rows),
            "first_annotation_token": rows[0]["token"],
            "last_annotation_token": rows[-1]["token"],
        }
    )


def _write_tables(folder: Path, config: SynthConfig, tables: Tables) -> None:
    (folder / "maps").mkdir()
    Image.new("L", (64, 64)).save(folder / "maps" / "empty.png")
    tables.rows["map"].append(
        {
            "token": token("map"),
            "log_tokens": [r["token"] for r in tables.rows["log"]],
            "category": "semantic_prior",
            "filename": "maps/empty.png",
        }
    )
    target = folder / config.version
    target.mkdir()
    for name, rows in tables.rows.items():
        (target / f"{name}.json").write_text(json.dumps(rows, indent=0))
