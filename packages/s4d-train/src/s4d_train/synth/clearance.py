"""Whether boxes on their ways touch: each is covered by discs, of which distances are cheap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Array

__all__ = ["Clearance", "Swept", "swept"]


@dataclass(frozen=True)
class Swept:
    """A moving box as discs."""

    centres: Array
    """(T, n, 2) metres, at the times that all ways of a scene share."""
    radius: float
    """Of each disc, metres."""
    reach: float
    """From the middle to the far side of the outermost disc, metres."""


class Clearance:
    """The ways that are taken."""

    def __init__(self) -> None:
        self._taken: list[Swept] = []

    def keep(self, way: Swept) -> None:
        """Takes a way."""
        self._taken.append(way)

    def allows(self, way: Swept, gap: float) -> bool:
        """Whether `way` stays `gap` metres, at all times, from every way that is taken."""
        for other in self._taken:
            # Middles first: most pairs never come near each other.
            apart = np.hypot(*(way.centres.mean(1) - other.centres.mean(1)).T).min()
            if apart > way.reach + other.reach + gap:
                continue
            between = way.centres[:, :, None, :] - other.centres[:, None, :, :]
            if np.linalg.norm(between, axis=-1).min() < way.radius + other.radius + gap:
                return False
        return True


def swept(poses: Array, length: float, width: float, ahead: float = 0.0) -> Swept:
    """Discs along the longer side of a box (metres) at poses (T, 3) of x, y, angle.

    The middle of the box lies `ahead` metres before the pose.
    """
    radius = min(length, width) / 2
    reach = max(length, width) / 2 - radius
    count = max(1, int(np.ceil(reach / (0.6 * radius))) + 1)
    along = np.linspace(-reach, reach, count) + ahead
    axis = poses[:, 2] if length >= width else poses[:, 2] + np.pi / 2
    forward = np.stack([np.cos(axis), np.sin(axis)], -1)
    centres = poses[:, None, :2] + along[None, :, None] * forward[:, None, :]
    return Swept(centres, radius, reach + radius)
