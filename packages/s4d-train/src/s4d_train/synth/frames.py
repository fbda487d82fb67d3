"""The files of key frames, and what the tables must know of them: the work of one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .camera import render
from .config import SynthConfig
from .geometry import Array
from .rig import LIDAR, cameras
from .scan import cast
from .scene import Scene

__all__ = ["CHUNK", "FrameReport", "file_name", "render_part", "stamp_of"]

CHUNK = 10
"""Key frames per task."""
_BASE_STAMP = 1_600_000_000_000_000


@dataclass(frozen=True)
class FrameReport:
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


def stamp_of(scene_number: int, frame: int) -> int:
    return _BASE_STAMP + scene_number * 600_000_000 + frame * 500_000


def render_part(task: tuple[SynthConfig, str, str, int]) -> tuple[str, list[FrameReport]]:
    """Render up to CHUNK key frames of one scene."""
    config, folder, name, first = task
    number = int(name[-4:])
    scene_number = config.names().index(name)
    seed = np.random.SeedSequence([config.seed, number])
    scene = Scene(seed, 0.5 * config.frames, config.density)
    origin = np.random.default_rng([config.seed, number, 7]).uniform(300.0, 2000.0, 2)
    last = min(first + CHUNK, config.frames)
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
) -> FrameReport:
    number = int(name[-4:])
    time = 0.5 * index
    stamp = stamp_of(scene_number, index)
    rng = np.random.default_rng([config.seed, number, index])
    actors = len(scene.actors)
    ego = {"LIDAR_TOP": _on_map(scene.ego_to_town(time), origin)}

    faces = scene.faces(time)
    sweep = cast(scene.parts(faces), LIDAR, scene.ego_to_town(time) @ LIDAR.to_ego, rng)
    _save_points(folder / file_name("LIDAR_TOP", stamp, name), sweep.points)
    hits = np.bincount(sweep.actor[sweep.actor >= 0], minlength=actors)

    swept = []
    for k in range(config.sweeps if index else 0):
        before = 500_000 * (config.sweeps - k) // (config.sweeps + 1)
        moment = time - before * 1e-6
        pose = scene.ego_to_town(moment)
        between = cast(scene.parts(scene.faces(moment)), LIDAR, pose @ LIDAR.to_ego, rng)
        _save_points(
            folder / file_name("LIDAR_TOP", stamp - before, name, "sweeps"), between.points
        )
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
        path = folder / file_name(camera.name, stamp + round(camera.delay * 1e6), name)
        Image.fromarray(view.image).save(path, quality=config.jpeg_quality)

    poses = scene.poses(time)
    here = scene.ego.at(time)
    share = np.where(covered > 0, visible / np.maximum(covered, 1), -1.0)
    poses_on_map = poses + np.array([*origin, 0.0])
    return FrameReport(
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


def file_name(sensor: str, stamp: int, scene: str, folder: str = "samples") -> str:
    ending = "pcd.bin" if sensor == "LIDAR_TOP" else "jpg"
    return f"{folder}/{sensor}/s4d-synth-{scene}__{sensor}__{stamp}.{ending}"


def _save_points(path: Path, points: np.ndarray) -> None:
    path.write_bytes(np.ascontiguousarray(points, dtype="<f4").tobytes())
