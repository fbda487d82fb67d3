"""A few frames in nuScenes layout, made on the spot: two short drives past four objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from s4d_runtime.geometry import invert_rigid
from s4d_runtime.nuscenes.dataset import CAMERA_ORDER
from s4d_runtime.rig import rig_cameras

RAW = (90, 160)
CATEGORIES = ("vehicle.car", "vehicle.bus.rigid", "human.pedestrian.adult", "animal")
PLACES = ((0.0, 12.0, 0.5), (9.0, 0.0, 0.4), (-7.0, -7.0, 0.2), (3.0, -10.0, 0.0))
SPEEDS = ((0.0, 4.0), (0.0, 0.0), (1.0, 0.0), (0.0, 0.0))
SIZES = ((2.0, 4.5, 1.6), (2.9, 11.0, 3.4), (0.7, 0.7, 1.8), (0.4, 0.8, 0.5))  # w l h


def matrix_to_quaternion(r: np.ndarray) -> list[float]:
    """``w x y z`` by the eigenvector of Shepperd's symmetric matrix (any rotation)."""
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)],
        ]
    )
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    return [w, x, y, z]


def write_dataset(root: Path, scenes: int = 2, frames: int = 3) -> Path:
    """Write ``root/v1.0-mini/*.json`` and ``root/samples/...``."""
    tables: dict[str, list[dict]] = {
        name: []
        for name in (
            *("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor"),
            *("sample_annotation", "instance", "category", "log"),
        )
    }
    identity = [1.0, 0.0, 0.0, 0.0]
    cameras = rig_cameras(len(CAMERA_ORDER), RAW)
    by_angle = dict(zip((0, 1, 5, 3, 4, 2), cameras, strict=True))  # clockwise to camera order
    channels = {"LIDAR_TOP": None, **{n: by_angle[i] for i, n in enumerate(CAMERA_ORDER)}}
    for channel, camera in channels.items():
        tables["sensor"].append(
            {
                "token": f"sensor-{channel}",
                "channel": channel,
                "modality": "lidar" if camera is None else "camera",
            }
        )
        camera2lidar = np.eye(4) if camera is None else invert_rigid(camera.lidar2camera)
        tables["calibrated_sensor"].append(
            {
                "token": f"calibration-{channel}",
                "sensor_token": f"sensor-{channel}",
                "translation": (camera2lidar[:3, 3] + (1.0, 0.0, 1.8)).tolist(),
                "rotation": matrix_to_quaternion(camera2lidar[:3, :3]),
                "camera_intrinsic": [] if camera is None else camera.intrinsic.tolist(),
            }
        )
    tables["category"] = [{"token": f"category-{c}", "name": c} for c in CATEGORIES]
    rng = np.random.default_rng(0)
    for s in range(scenes):
        scene = f"scene-{s:04d}"
        tables["scene"].append({"token": f"token-{scene}", "name": scene, "description": "made"})
        for i, category in enumerate(CATEGORIES):
            tables["instance"].append(
                {"token": f"{scene}-object-{i}", "category_token": f"category-{category}"}
            )
        for f in range(frames):
            token = f"{scene}-sample-{f}"
            stamp = 1_600_000_000_000_000 + s * 60_000_000 + f * 500_000
            sample = {"token": token, "timestamp": stamp, "scene_token": f"token-{scene}"}
            tables["sample"].insert(0, sample)  # not in time order
            for channel in channels:
                data = f"{token}-{channel}"
                late = 0 if channel == "LIDAR_TOP" else 20_000
                seconds = f * 0.5 + late / 1e6
                tables["ego_pose"].append(
                    {
                        "token": f"pose-{data}",
                        "timestamp": stamp + late,
                        "rotation": identity,
                        "translation": [100.0, 2.0 * seconds, 0.0],
                    }
                )
                suffix = "bin" if channel == "LIDAR_TOP" else "jpg"
                tables["sample_data"].append(
                    {
                        "token": data,
                        "sample_token": token,
                        "ego_pose_token": f"pose-{data}",
                        "calibrated_sensor_token": f"calibration-{channel}",
                        "timestamp": stamp + late,
                        "filename": f"samples/{channel}/{data}.{suffix}",
                        "is_key_frame": True,
                    }
                )
                path = root / tables["sample_data"][-1]["filename"]
                path.parent.mkdir(parents=True, exist_ok=True)
                if channel == "LIDAR_TOP":
                    rng.normal(0, 15, (200, 5)).astype(np.float32).tofile(path)
                else:
                    pixels = rng.integers(40, 90, (*RAW, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(path, quality=90)
            for i, (place, speed, size) in enumerate(zip(PLACES, SPEEDS, SIZES, strict=True)):
                x, y, z = place
                at = [101 + x + speed[0] * f * 0.5, y + speed[1] * f * 0.5, z + 1.8]
                key = f"{scene}-annotation-{i}-"
                tables["sample_annotation"].append(
                    {
                        "token": f"{key}{f}",
                        "sample_token": token,
                        "instance_token": f"{scene}-object-{i}",
                        "translation": at,
                        "size": size,
                        "rotation": [np.cos(0.2), 0.0, 0.0, np.sin(0.2)],
                        "prev": f"{key}{f - 1}" if f else "",
                        "next": f"{key}{f + 1}" if f < frames - 1 else "",
                        "num_lidar_pts": 7,
                        "num_radar_pts": 1,
                        "attribute_tokens": [],
                    }
                )
    folder = root / "v1.0-mini"
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root
