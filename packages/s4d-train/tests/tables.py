"""nuScenes tables of a few boxes, written for the evaluation tests: no images, no LiDAR."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

VERSION = "v1.0-mini"
CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "construction_vehicle": "vehicle.construction",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "barrier": "movable_object.barrier",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "pedestrian": "human.pedestrian.adult",
    "traffic_cone": "movable_object.trafficcone",
}
ATTRIBUTE = {
    "car": "vehicle.moving",
    "truck": "vehicle.moving",
    "construction_vehicle": "vehicle.moving",
    "bus": "vehicle.moving",
    "trailer": "vehicle.moving",
    "motorcycle": "cycle.with_rider",
    "bicycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
}
UNTRACKED = ("construction_vehicle", "barrier", "traffic_cone")


def write_tables(
    root: Path,
    scenes: tuple[str, ...] = ("scene-a", "scene-b"),
    frames: int = 4,
    per_class: int = 2,
) -> Path:
    """A data set in `root`: each scene has `per_class` moving objects of each class."""
    folder = root / VERSION
    folder.mkdir(parents=True)
    (root / "maps").mkdir()
    (root / "maps" / "empty.png").write_bytes(b"")
    t: dict[str, list[dict[str, Any]]] = {
        "category": [
            {"token": f"c-{n}", "name": c, "description": ""} for n, c in CATEGORIES.items()
        ],
        "attribute": [
            {"token": a, "name": a, "description": ""} for a in sorted(set(ATTRIBUTE.values()))
        ],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "instance": [],
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}],
        "calibrated_sensor": [
            {
                "token": "cs",
                "sensor_token": "lidar",
                "translation": [0.0, 0.0, 0.0],
                "rotation": [1.0, 0.0, 0.0, 0.0],
                "camera_intrinsic": [],
            }
        ],
        "ego_pose": [],
        "log": [
            {
                "token": "log",
                "logfile": "",
                "vehicle": "v",
                "date_captured": "2026-01-01",
                "location": "nowhere",
            }
        ],
        "map": [
            {
                "token": "map",
                "log_tokens": ["log"],
                "category": "semantic_prior",
                "filename": "maps/empty.png",
            }
        ],
        "scene": [],
        "sample": [],
        "sample_data": [],
        "sample_annotation": [],
    }
    for s, scene in enumerate(scenes):
        _add_scene(t, s, scene, frames, per_class)
    for name, rows in t.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root


def _add_scene(t: dict[str, list[Any]], s: int, scene: str, frames: int, per_class: int) -> None:
    samples = [f"{scene}-{f}" for f in range(frames)]
    t["scene"].append(
        {
            "token": scene,
            "log_token": "log",
            "name": scene,
            "description": "",
            "nbr_samples": frames,
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
        }
    )
    for f, token in enumerate(samples):
        time = 1_500_000_000_000_000 + s * 100_000_000 + f * 500_000
        before, after = (samples[f - 1] if f else ""), (samples[f + 1] if f + 1 < frames else "")
        t["sample"].append(
            {
                "token": token,
                "timestamp": time,
                "prev": before,
                "next": after,
                "scene_token": scene,
            }
        )
        t["ego_pose"].append(
            {
                "token": f"p-{token}",
                "timestamp": time,
                "rotation": [1.0, 0.0, 0.0, 0.0],
                "translation": [100.0 * s, 0.0, 0.0],
            }
        )
        t["sample_data"].append(
            {
                "token": f"d-{token}",
                "sample_token": token,
                "ego_pose_token": f"p-{token}",
                "calibrated_sensor_token": "cs",
                "timestamp": time,
                "fileformat": "pcd",
                "is_key_frame": True,
                "height": 0,
                "width": 0,
                "filename": "",
                "prev": "",
                "next": "",
            }
        )
    for n, name in enumerate(CATEGORIES):
        for k in range(per_class):
            _add_track(t, s, scene, samples, name, n, k)


def _add_track(
    t: dict[str, list[Any]], s: int, scene: str, samples: list[str], name: str, n: int, k: int
) -> None:
    track = f"{scene}-{name}-{k}"
    tokens = [f"a-{track}-{f}" for f in range(len(samples))]
    t["instance"].append(
        {
            "token": track,
            "category_token": f"c-{name}",
            "nbr_annotations": len(tokens),
            "first_annotation_token": tokens[0],
            "last_annotation_token": tokens[-1],
        }
    )
    angle, radius = 0.6 * n, 8.0 + 9.0 * k
    moving = name in ATTRIBUTE
    for f, token in enumerate(tokens):
        shift = 0.5 * f if moving else 0.0
        t["sample_annotation"].append(
            {
                "token": token,
                "sample_token": samples[f],
                "instance_token": track,
                "visibility_token": "4",
                "attribute_tokens": [ATTRIBUTE[name]] if moving else [],
                "translation": [
                    100.0 * s + radius * math.cos(angle) + shift,
                    radius * math.sin(angle),
                    1.0,
                ],
                "size": [1.0 + 0.1 * n, 2.0, 1.5],
                "rotation": [math.cos(0.1 * n), 0.0, 0.0, math.sin(0.1 * n)],
                "prev": tokens[f - 1] if f else "",
                "next": tokens[f + 1] if f + 1 < len(tokens) else "",
                "num_lidar_pts": 5,
                "num_radar_pts": 0,
            }
        )


def perfect_results(root: Path, kind: str) -> dict[str, Any]:
    """The annotations of `write_tables` as a result file: `kind` is detection or tracking."""
    folder = root / VERSION
    rows = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("sample", "sample_annotation", "instance")
    }
    names = {i["token"]: i["category_token"][2:] for i in rows["instance"]}
    results: dict[str, list[dict[str, Any]]] = {s["token"]: [] for s in rows["sample"]}
    for a in rows["sample_annotation"]:
        name = names[a["instance_token"]]
        box = {k: a[k] for k in ("sample_token", "translation", "size", "rotation")}
        box["velocity"] = [1.0, 0.0] if name in ATTRIBUTE else [0.0, 0.0]
        # The devkit sweeps recall by score: distinct scores give it steps.
        score = 0.5 + (hash_of(a["token"]) % 1000) / 2500
        if kind == "detection":
            box |= {"detection_name": name, "detection_score": score}
            box["attribute_name"] = ATTRIBUTE.get(name, "")
        elif name in UNTRACKED:
            continue
        else:
            box |= {"tracking_id": a["instance_token"], "tracking_name": name}
            box["tracking_score"] = score
        results[a["sample_token"]].append(box)
    return {"meta": {"use_camera": True}, "results": results}


def hash_of(text: str) -> int:
    """A number that is the same in every process."""
    return sum((i + 1) * ord(c) for i, c in enumerate(text))
