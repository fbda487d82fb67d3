"""Annotated objects: their tables, positions in the LiDAR frame, and velocities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..geometry import invert_rigid
from .classes import DETECTION_NAMES, detection_name
from .records import Annotations, Sample
from .tables import AnnotationRow, InstanceRow, NamedRow, read_table, rotation

__all__ = ["AnnotationTables"]

MAX_VELOCITY_INTERVAL = 1.5  # seconds between two annotations that still give a velocity


class AnnotationTables:
    """The tables of annotations, instances and categories.

    Args:
        folder: with the tables.
        sample_times: seconds, by sample token.

    Raises:
        DatasetError: a table is missing or broken.
    """

    def __init__(self, folder: Path, sample_times: dict[str, float]) -> None:
        rows = read_table(folder / "sample_annotation.json", AnnotationRow)
        instances = read_table(folder / "instance.json", InstanceRow)
        categories = read_table(folder / "category.json", NamedRow)
        names = {r.token: r.name for r in categories}
        self._sample_times = sample_times
        self._rows = {r.token: r for r in rows}
        self._by_sample: dict[str, list[AnnotationRow]] = {}
        for row in rows:
            self._by_sample.setdefault(row.sample_token, []).append(row)
        self._categories = {r.token: names.get(r.category_token, "") for r in instances}
        self._numbers = {r.token: number for number, r in enumerate(instances)}

    def of(self, sample: Sample) -> Annotations:
        """The objects of one sample, in its LiDAR frame.

        Raises:
            DatasetError: a rotation that is none.
        """
        rows = self._by_sample.get(sample.token, [])
        world2lidar = invert_rigid(sample.lidar2global)
        boxes = np.zeros((len(rows), 10))
        for i, row in enumerate(rows):
            turn = world2lidar[:3, :3] @ rotation(row.rotation, row.token)
            boxes[i, :3] = world2lidar[:3, :3] @ np.array(row.translation) + world2lidar[:3, 3]
            width, length, height = row.size
            boxes[i, 3:6] = length, width, height  # column w lies along the heading
            boxes[i, 6] = np.arctan2(turn[1, 0], turn[0, 0])
            boxes[i, 7:9] = (world2lidar[:3, :3] @ self._velocity(row))[:2]
        names = [self._categories.get(r.instance_token, "") for r in rows]
        classes = [detection_name(n) for n in names]
        return Annotations(
            boxes,
            np.array([-1 if c is None else DETECTION_NAMES.index(c) for c in classes], np.int64),
            tuple(names),
            np.array([self._numbers.get(r.instance_token, -1) for r in rows], np.int64),
            tuple(r.token for r in rows),
            np.array([r.num_lidar_pts + r.num_radar_pts for r in rows], np.int64),
        )

    def _velocity(self, row: AnnotationRow) -> NDArray[np.float64]:
        """World velocity (3,) by the difference of the neighbouring annotations; else NaN."""
        rows = self._rows
        before, after = rows.get(row.prev, row), rows.get(row.next, row)
        if before is after:
            return np.full(3, np.nan)
        times = [self._sample_times[r.sample_token] for r in (before, after)]
        interval = times[1] - times[0]
        both = before is not row and after is not row
        if not 0 < interval <= MAX_VELOCITY_INTERVAL * (2 if both else 1):
            return np.full(3, np.nan)
        moved = np.array(after.translation) - np.array(before.translation)
        return np.asarray(moved / interval)
