"""The thirteen JSON tables of a nuScenes data set."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

from .geometry import Array, matrix_to_quaternion
from .objects import KINDS
from .rig import LIDAR, Camera

__all__ = ["ATTRIBUTES", "TRAIN_SCENES", "VAL_SCENES", "Tables", "scene_names", "token"]

Row = dict[str, Any]

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)

MINI_TRAIN = "61 553 655 757 796 1077 1094 1100"
MINI_VAL = "103 916"
# Scene numbers of nuScenes' official splits, as ranges.
TRAIN_SCENES = (
    "1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 "
    "202-204 206-214 218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 "
    "410-459 461-465 467-469 471-472 474-480 499-502 504-515 517-518 525-539 541-546 566 568 "
    "570-578 580 582-600 639-679 681 683-689 695-698 700-701 703-719 726-728 730-731 733-741 744 "
    "746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 815-817 819-822 847-856 858 "
    "860-866 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992 994-1025 "
    "1044-1058 1074-1102 1104-1110"
)
VAL_SCENES = (
    "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 "
    "632-638 770-771 775 777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 "
    "1059-1073"
)


def _numbers(ranges: str) -> list[int]:
    numbers: list[int] = []
    for item in ranges.split():
        low, _, high = item.partition("-")
        numbers.extend(range(int(low), int(high or low) + 1))
    return numbers


def scene_names(split: str, train: int, val: int) -> list[str]:
    """Names of ``train`` training and ``val`` validation scenes that the devkit's splits know.

    ``split`` is "mini" (8 and 2 at most) or "trainval" (700 and 150). ValueError beyond that.
    """
    pools = (MINI_TRAIN, MINI_VAL) if split == "mini" else (TRAIN_SCENES, VAL_SCENES)
    chosen: list[str] = []
    for pool, count, name in zip(pools, (train, val), ("training", "validation"), strict=True):
        numbers = _numbers(pool)
        if count > len(numbers):
            raise ValueError(
                f"split {split} has {len(numbers)} {name} scenes, asked for {count}; "
                "ask for fewer, or use the split trainval"
            )
        chosen += [f"scene-{number:04d}" for number in numbers[:count]]
    return chosen


def token(*parts: object) -> str:
    """A 32-digit token that is a function of ``parts``."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


class Tables:
    """Rows of all tables; filled scene by scene, in order."""

    def __init__(self, seed: int, rig: tuple[Camera, ...]) -> None:
        self.seed = seed
        self.rows: dict[str, list[Row]] = {
            name: []
            for name in (
                "category",
                "attribute",
                "visibility",
                "instance",
                "sensor",
                "calibrated_sensor",
                "ego_pose",
                "log",
                "scene",
                "sample",
                "sample_data",
                "sample_annotation",
                "map",
            )
        }
        for kind in KINDS.values():
            self.rows["category"].append(
                {
                    "token": token("category", kind.category),
                    "name": kind.category,
                    "description": "synthetic",
                }
            )
        for name in ATTRIBUTES:
            self.rows["attribute"].append(
                {"token": token("attribute", name), "name": name, "description": ""}
            )
        levels = ("v0-40", "v40-60", "v60-80", "v80-100")
        for number, level in enumerate(levels, start=1):
            self.rows["visibility"].append(
                {"token": str(number), "level": level, "description": "visible share in percent"}
            )
        for name in [c.name for c in rig] + ["LIDAR_TOP"]:
            modality = "lidar" if name == "LIDAR_TOP" else "camera"
            self.rows["sensor"].append(
                {"token": token("sensor", name), "channel": name, "modality": modality}
            )

    def add_log(self, scene: str, rig: tuple[Camera, ...]) -> str:
        """A log, its calibration; returns the log's token."""
        log = token(self.seed, scene, "log")
        self.rows["log"].append(
            {
                "token": log,
                "logfile": f"s4d-synth-{scene}",
                "vehicle": "s4d-synth",
                "date_captured": "2020-01-01",
                "location": "singapore-onenorth",
            }
        )
        for camera in rig:
            self._calibrate(
                scene, camera.name, camera.rotation, camera.translation, camera.intrinsic.tolist()
            )
        self._calibrate(scene, "LIDAR_TOP", LIDAR.rotation, LIDAR.translation, [])
        return log

    def _calibrate(
        self,
        scene: str,
        name: str,
        rotation: Array,
        translation: Array,
        intrinsic: list[list[float]],
    ) -> None:
        self.rows["calibrated_sensor"].append(
            {
                "token": token(self.seed, scene, "calibrated", name),
                "sensor_token": token("sensor", name),
                "translation": [float(v) for v in translation],
                "rotation": matrix_to_quaternion(rotation),
                "camera_intrinsic": intrinsic,
            }
        )

    def add_data(
        self,
        scene: str,
        name: str,
        sample: str,
        stamp: int,
        filename: str,
        pose: Array,
        size: tuple[int, int],
        key_frame: bool = True,
    ) -> None:
        """One sensor reading and its ego pose (4, 4)."""
        key = token(self.seed, scene, "data", name, stamp)
        self.rows["ego_pose"].append(
            {
                "token": key,
                "timestamp": stamp,
                "rotation": matrix_to_quaternion(pose[:3, :3]),
                "translation": [float(v) for v in pose[:3, 3]],
            }
        )
        self.rows["sample_data"].append(
            {
                "token": key,
                "sample_token": sample,
                "ego_pose_token": key,
                "calibrated_sensor_token": token(self.seed, scene, "calibrated", name),
                "timestamp": stamp,
                "fileformat": "pcd" if name == "LIDAR_TOP" else "jpg",
                "is_key_frame": key_frame,
                "height": size[1],
                "width": size[0],
                "filename": filename,
                "prev": "",
                "next": "",
            }
        )

    @staticmethod
    def chain(rows: list[Row]) -> None:
        """Link rows that follow each other in time."""
        for before, after in itertools.pairwise(rows):
            before["next"], after["prev"] = after["token"], before["token"]
