"""Paths through the street grid and the motion of whatever follows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Array
from .town import Town

__all__ = ["Motion", "Path", "lane_path", "straight"]

_STEP = 0.25
"""Sampling of a path, metres."""


@dataclass(frozen=True)
class Path:
    """A curve in the plane sampled by arc length."""

    points: Array
    """(n, 2)"""
    heading: Array
    """(n,) radians, unwrapped."""
    distance: Array
    """(n,) metres from the start."""

    @property
    def length(self) -> float:
        return float(self.distance[-1])

    def at(self, s: Array) -> Array:
        """(..., 3) x, y, heading at arc length ``s``; straight on beyond the ends."""
        s = np.asarray(s, dtype=np.float64)
        inside = np.clip(s, 0.0, self.length)
        x = np.interp(inside, self.distance, self.points[:, 0])
        y = np.interp(inside, self.distance, self.points[:, 1])
        heading = np.interp(inside, self.distance, self.heading)
        over = s - inside
        return np.stack([x + over * np.cos(heading), y + over * np.sin(heading), heading], -1)


@dataclass(frozen=True)
class Motion:
    """A path with its time table."""

    path: Path
    times: Array
    """(n,) seconds at which the path's samples are passed."""
    start: float = 0.0
    """Arc length at the first time, for what stands still."""
    offset: float = 0.0
    """Added to the arc length: a trailer follows its truck with a negative one."""

    def at(self, time: float | Array) -> Array:
        """(..., 3) x, y, heading at ``time`` seconds."""
        time = np.asarray(time, dtype=np.float64)
        s = np.interp(time, self.times, self.path.distance[: len(self.times)])
        # Before and after the table the end speeds go on.
        first = self.path.distance[1] / max(self.times[1] - self.times[0], 1e-6)
        n = len(self.times) - 1
        last = (self.path.distance[n] - self.path.distance[n - 1]) / max(
            self.times[n] - self.times[n - 1], 1e-6
        )
        s = s + np.minimum(time - self.times[0], 0.0) * first
        s = s + np.maximum(time - self.times[n], 0.0) * last
        return self.path.at(s + self.start + self.offset)

    def speed(self, time: float) -> float:
        """Metres per second at ``time``."""
        ahead, behind = self.at(time + 0.05), self.at(time - 0.05)
        return float(np.hypot(*(ahead - behind)[:2]) / 0.1)

    @staticmethod
    def standing(x: float, y: float, heading: float) -> Motion:
        """Something that does not move."""
        return Motion(straight((x, y), heading, 1.0), np.array([0.0, 1e12]))

    @staticmethod
    def driving(
        path: Path,
        cruise: float,
        at: float,
        time: float,
        lateral: float = 2.2,
        stop: tuple[float, float] | None = None,
    ) -> Motion:
        """Follow ``path`` so that arc length ``at`` is reached at ``time``.

        Speed is ``cruise`` m/s, less where the curvature would give more than ``lateral`` m/s^2,
        with at most 2 m/s^2 along the path. ``stop`` = (arc length, seconds) adds a halt.
        """
        ds = np.diff(path.distance, prepend=-_STEP)
        curvature = np.abs(np.gradient(path.heading, path.distance))
        limit = np.minimum(cruise, np.sqrt(lateral / np.maximum(curvature, 1e-4)))
        if stop is not None:
            limit[int(np.searchsorted(path.distance, stop[0]))] = 0.4
        speeds, steps = limit.tolist(), ds.tolist()
        for i in range(1, len(speeds)):
            speeds[i] = min(speeds[i], (speeds[i - 1] ** 2 + 4.0 * steps[i]) ** 0.5)
        for i in range(len(speeds) - 2, -1, -1):
            speeds[i] = min(speeds[i], (speeds[i + 1] ** 2 + 4.0 * steps[i + 1]) ** 0.5)
        limit = np.array(speeds)
        times = np.concatenate([[0.0], np.cumsum(ds[1:] * 2.0 / (limit[1:] + limit[:-1]))])
        if stop is not None:
            times[int(np.searchsorted(path.distance, stop[0])) :] += stop[1]
        return Motion(path, times + time - float(np.interp(at, path.distance, times)))


def straight(start: tuple[float, float], heading: float, length: float) -> Path:
    """A straight path."""
    n = max(2, round(length / _STEP) + 1)
    s = np.linspace(0.0, length, n)
    points = np.asarray(start) + s[:, None] * np.array([np.cos(heading), np.sin(heading)])
    return Path(points, np.full(n, heading), s)


def lane_path(
    town: Town,
    position: tuple[float, float],
    heading: int,
    lane: float,
    length: float,
    turns: list[int],
) -> Path:
    """Drive along a lane and turn at the crossings.

    ``position``: a point on the street's middle line; ``heading``: 0..3 quarter turns from +x;
    ``lane``: metres right of the middle; ``turns``: per crossing that comes, 0 straight on, +1
    left, -1 right (then straight on for ever).
    """
    corners = [np.asarray(position, dtype=np.float64)]
    directions = [heading]
    here = corners[0].copy()
    travelled = 0.0
    queue = list(turns)
    while travelled < length:
        forward = _unit(heading)
        axis = heading % 2
        block = town.block[axis]
        index = here[axis] / block
        sign = forward[axis]
        target = (np.floor(index + 1e-6) + 1 if sign > 0 else np.ceil(index - 1e-6) - 1) * block
        travelled += abs(target - here[axis])
        here = here.copy()
        here[axis] = target
        turn = queue.pop(0) if queue else 0
        if turn:
            heading = (heading + turn) % 4
            corners.append(here)
            directions.append(heading)
    corners.append(here)
    directions.append(heading)
    return _round_corners(corners, directions, lane)


def _unit(heading: int) -> Array:
    return np.array([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)][heading % 4])


def _right(heading: int) -> Array:
    forward = _unit(heading)
    return np.array([forward[1], -forward[0]])


def _round_corners(corners: list[Array], directions: list[int], lane: float) -> Path:
    """Shift each leg to its lane and join the legs by quarter circles."""
    pieces: list[Array] = []
    angle = directions[0] * np.pi / 2
    start = corners[0] + lane * _right(directions[0])
    for k in range(1, len(corners)):
        before, after = directions[k - 1], directions[k]
        if k == len(corners) - 1:
            end = corners[k] + lane * _right(before)
            pieces.append(_segment(start, end, angle))
            break
        meet = corners[k] + lane * (_right(before) + _right(after))
        left = (after - before) % 4 == 1
        radius = 13.0 if left else 8.5
        entry = meet - radius * _unit(before)
        pieces.append(_segment(start, entry, angle))
        sweep = np.pi / 2 if left else -np.pi / 2
        n = int(np.ceil(radius * np.pi / 2 / _STEP))
        part = np.linspace(0.0, sweep, n + 1)[1:]
        centre = entry + (-1.0 if left else 1.0) * radius * _right(before)
        spoke = entry - centre
        cos, sin = np.cos(part), np.sin(part)
        arc = np.column_stack(
            [
                centre[0] + cos * spoke[0] - sin * spoke[1],
                centre[1] + sin * spoke[0] + cos * spoke[1],
                angle + part,
            ]
        )
        pieces.append(arc)
        angle += sweep
        start = meet + radius * _unit(after)
    curve = np.concatenate(pieces)
    steps = np.hypot(*np.diff(curve[:, :2], axis=0).T)
    keep = np.concatenate([[True], steps > 1e-6])
    curve = curve[keep]
    steps = np.hypot(*np.diff(curve[:, :2], axis=0).T)
    return Path(curve[:, :2], curve[:, 2], np.concatenate([[0.0], np.cumsum(steps)]))


def _segment(start: Array, end: Array, angle: float) -> Array:
    n = max(2, round(float(np.hypot(*(end - start))) / _STEP) + 1)
    points = start + np.linspace(0.0, 1.0, n)[:, None] * (end - start)
    return np.column_stack([points, np.full(n, angle)])
