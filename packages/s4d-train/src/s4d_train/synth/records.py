"""Reports of key frames to the rows of the nuScenes tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from .config import SynthConfig
from .frames import FrameReport, file_name
from .geometry import matrix_to_quaternion, yaw_matrix
from .objects import KINDS
from .rig import cameras
from .tables import Tables, token

__all__ = ["tabulate", "write_tables"]

_RANGE = 80.0
"""Objects farther than this from the car are not annotated, metres."""


def tabulate(
    tables: Tables, config: SynthConfig, name: str, start: int, frames: list[FrameReport]
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
                file_name("LIDAR_TOP", swept, name, "sweeps"),
                pose,
                (0, 0),
                False,
            )
        tables.add_data(
            name,
            "LIDAR_TOP",
            sample,
            stamp,
            file_name("LIDAR_TOP", stamp, name),
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
                file_name(camera.name, taken, name),
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
    frames: list[FrameReport],
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


def write_tables(folder: Path, config: SynthConfig, tables: Tables) -> None:
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
