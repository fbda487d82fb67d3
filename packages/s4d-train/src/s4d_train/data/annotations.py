"""The annotation columns of an index: boxes in the LiDAR frame, velocities, classes, identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .config import CLASS_NAMES
from .lookup import Lookup, texts
from .poses import inverse, rotation_matrices
from .source import Columns

__all__ = ["CATEGORY_CLASS", "add_annotations"]

Array = npt.NDArray[Any]

CATEGORY_CLASS = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "movable_object.barrier": "barrier",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
}
"""The detection classes of nuScenes; its other categories are none of them."""

_VELOCITY_WINDOW = 1.5
"""Neighbouring annotations farther apart than this (seconds) give no velocity; the devkit's."""


def add_annotations(tables: dict[str, Columns], columns: Columns) -> int:
    """Add the annotation columns; returns the number of objects."""
    rows = tables["sample_annotation"]
    count = len(columns["token"])
    if not len(rows["token"]):  # the test set
        empty = np.zeros(0, dtype=np.int32)
        columns["annotation_start"] = np.zeros(count + 1, dtype=np.int64)
        columns["box"], columns["velocity"] = np.zeros((0, 7)), np.zeros((0, 2))
        for name in (
            "label",
            "category",
            "attribute",
            "visibility",
            "instance",
            "num_lidar_pts",
            "num_radar_pts",
        ):
            columns[name] = empty
        return 0
    sample = Lookup(columns["token"]).rows(rows["sample_token"], "sample")
    order = np.argsort(sample, kind="stable")
    sample = sample[order]
    rows = {name: column[order] for name, column in rows.items()}
    columns["annotation_start"] = np.searchsorted(sample, np.arange(count + 1)).astype(np.int64)

    lidar2global = columns["ego2global"] @ columns["lidar2ego"]
    global2lidar = inverse(lidar2global)[sample]
    turn = global2lidar[:, :3, :3]
    centre = np.einsum("aij,aj->ai", turn, rows["translation"]) + global2lidar[:, :3, 3]
    heading = np.einsum("aij,aj->ai", turn, rotation_matrices(rows["rotation"])[:, :, 0])
    yaw = np.arctan2(heading[:, 1], heading[:, 0])
    size = rows["size"][:, [1, 0, 2]]  # nuScenes has width, length, height
    columns["box"] = np.concatenate([centre, size, yaw[:, None]], 1)
    _check_boxes(columns["box"], rows["token"])
    velocity = _velocities(rows, columns["timestamp"][sample])
    columns["velocity"] = np.einsum("aij,aj->ai", turn, velocity)[:, :2]

    instance = Lookup(tables["instance"]["token"]).rows(rows["instance_token"], "instance")
    category = Lookup(tables["category"]["token"]).rows(
        tables["instance"]["category_token"], "category"
    )[instance]
    names = texts(tables["category"]["name"])
    label = np.array([_class_of(name) for name in names], dtype=np.int32)
    columns["label"] = label[category]
    columns["category"] = category.astype(np.int32)
    attribute = Lookup(tables["attribute"]["token"]).find(rows["attribute_tokens"])
    columns["attribute"] = attribute.astype(np.int32)
    visibility = rows["visibility_token"]
    columns["visibility"] = np.where(visibility == b"", b"0", visibility).astype(np.int32)
    columns["instance"] = instance.astype(np.int32)
    for name in ("num_lidar_pts", "num_radar_pts"):
        columns[name] = rows[name].astype(np.int32)
    return len(tables["instance"]["token"])


def _check_boxes(box: Array, token: np.ndarray) -> None:
    """DataError where a box (A, 7) is not finite or has no extent."""
    wrong = ~(np.isfinite(box).all(1) & (box[:, 3:6] > 0).all(1))
    if wrong.any():
        raise DataError(
            f"sample_annotation.json has {int(wrong.sum())} boxes with a NaN value or a size that "
            f"is not positive, first {token[wrong][0].decode()}; correct them or take them out."
        )


def _class_of(category: str) -> int:
    name = CATEGORY_CLASS.get(category)
    return CLASS_NAMES.index(name) if name else -1


def _velocities(rows: Columns, timestamp: Array) -> Array:
    """(A, 3) m/s in the global frame from the neighbours in time, as the devkit has it.

    Central difference where both neighbours exist, one-sided else, NaN where the time between is
    above 1.5 s (3 s for two neighbours) or there is no neighbour.
    """
    lookup = Lookup(rows["token"])
    own = np.arange(len(timestamp))
    before, after = lookup.find(rows["prev"]), lookup.find(rows["next"])
    both = (before >= 0) & (after >= 0)
    first, last = np.where(before >= 0, before, own), np.where(after >= 0, after, own)
    seconds = 1e-6 * (timestamp[last] - timestamp[first])
    usable = (last != first) & (seconds <= np.where(both, 2, 1) * _VELOCITY_WINDOW) & (seconds > 0)
    step = rows["translation"][last] - rows["translation"][first]
    return np.where(usable[:, None], step / np.where(usable, seconds, 1.0)[:, None], np.nan)
